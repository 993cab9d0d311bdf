"""Guesses what one answer's next tokens are, and how many guesses a step should check.

Speculative decoding: a step computes drafted tokens behind the newest one and samples at each place
as ever; a drafted token is kept while it is the one that was sampled. So the tokens are those of
plain decoding, whatever is guessed, and only their number a step depends on the guesses.
(Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, sample so that any draft model's tokens
may be kept more often; a guess here is one token and no distribution, where both come to the same.)
"""

from collections.abc import Sequence as SequenceOf
from typing import Final, Protocol

MAX_DRAFT: Final = 10
_N_GRAM: Final = 3
# What the first guesses are trusted with, and how fast old ones are forgotten.
_PRIOR_HITS: Final = 1.4
_PRIOR_TRIES: Final = 2.0
_KEPT: Final = 0.9
# Tokens that take as long as a step's fixed part does, until steps have been measured.
_DEFAULT_FIXED_TOKENS: Final = 8.0
_MIN_FIXED_TOKENS: Final = 0.5
MAX_FIXED_TOKENS: Final = 64.0
_STEPS_KEPT: Final = 0.98
_NEWS: Final = 0.2


class Proposer(Protocol):
    """Follows one answer; it may keep what it likes from call to call."""

    def propose(self, token_ids: SequenceOf[int], *, max_tokens: int) -> SequenceOf[int]:
        """Return at most ``max_tokens`` ids that are likely next; none where it has no idea.

        token_ids: prompt and answer so far, those of the last call and more.
        """


class PromptLookup:
    """What followed the newest tokens when they last occurred, in prompt or answer.

    (Prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding.) Where that was
    so near that the copy would run into itself it goes round, as in LZ77. A new token costs one
    entry of the index.
    """

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._n_indexed = _N_GRAM

    def propose(self, token_ids: SequenceOf[int], *, max_tokens: int) -> SequenceOf[int]:
        for place in range(self._n_indexed, len(token_ids)):
            self._after[tuple(token_ids[place - _N_GRAM : place])] = place
        self._n_indexed = max(self._n_indexed, len(token_ids))
        start = self._after.get(tuple(token_ids[-_N_GRAM:]))
        if start is None:
            return ()
        period = len(token_ids) - start
        return [token_ids[start + i % period] for i in range(max_tokens)]


class StepCost:
    """How the time of a step grows with its tokens: fixed_tokens of them take as long as the rest.

    A least-squares line through the steps that only decode, the old ones forgotten. How far above
    or below it the newest were is followed faster: contexts grow.
    """

    def __init__(self) -> None:
        self.fixed_tokens = _DEFAULT_FIXED_TOKENS
        self._sums = [0.0] * 5
        self._token_s: float | None = None

    def expected_s(self, n_tokens: int) -> float | None:
        """Return how long a step of so many decoded tokens takes; None before there was one."""
        if self._token_s is None:
            return None
        return self._token_s * (self.fixed_tokens + n_tokens)

    def in_tokens(self, seconds: float) -> float:
        """Return how many more tokens a step of so much longer has; 0 before there was one."""
        return seconds / self._token_s if self._token_s else 0.0

    def record(self, *, n_tokens: int, step_s: float) -> None:
        """Learn from a step."""
        token_s = step_s / (self.fixed_tokens + n_tokens)
        known_s = token_s if self._token_s is None else self._token_s
        self._token_s = known_s + _NEWS * (token_s - known_s)
        terms = (1.0, n_tokens, step_s, n_tokens * n_tokens, n_tokens * step_s)
        self._sums = [a * _STEPS_KEPT + b for a, b in zip(self._sums, terms, strict=True)]
        n, x, y, xx, xy = self._sums
        slope, intercept = n * xy - x * y, y * xx - x * xy  # both times n * xx - x * x
        if n * xx - x * x > n * n and slope > 0.0:  # else the sizes are too much alike
            self.fixed_tokens = min(max(intercept / slope, _MIN_FIXED_TOKENS), MAX_FIXED_TOKENS)

    def worthwhile(
        self, chance: float, *, n_rows: int, most: int, guess_tokens: float = 0.0
    ) -> int:
        """Return how many tokens each of ``n_rows`` should draft so that most come in a second.

        chance: that a drafted token is right where all before it are. guess_tokens: what one more
        guess for each row takes beside the step, in tokens of it.
        """
        tokens, next_tokens = 1.0, chance
        for n_draft in range(most):
            step = self.fixed_tokens + n_rows * (1 + n_draft) + guess_tokens * n_draft
            if next_tokens * step <= tokens * (n_rows + guess_tokens):
                return n_draft
            tokens += next_tokens
            next_tokens *= chance
        return most


class Drafter:
    """One answer's drafts. Every guess is scored, also those that no step has checked, so that
    drafting ends where it does not pay and begins again where it would."""

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer
        self._guess: SequenceOf[int] = ()
        self._n_known = 0
        self._hits = _PRIOR_HITS
        self._tries = _PRIOR_TRIES

    def draft(
        self, token_ids: SequenceOf[int], *, cost: StepCost, n_rows: int, most: int
    ) -> tuple[int, ...]:
        """Return what the next step should check, ``most`` tokens at most."""
        self._score(token_ids)
        n_draft = cost.worthwhile(self._hits / self._tries, n_rows=n_rows, most=most)
        self._guess = self._proposer.propose(token_ids, max_tokens=max(1, n_draft))
        self._n_known = len(token_ids)
        return tuple(self._guess[:n_draft])

    def _score(self, token_ids: SequenceOf[int]) -> None:
        for guessed, place in zip(self._guess, range(self._n_known, len(token_ids)), strict=False):
            is_hit = guessed == token_ids[place]
            self._hits = self._hits * _KEPT + is_hit
            self._tries = self._tries * _KEPT + 1.0
            if not is_hit:
                break
