"""How many tokens a draft model should guess for an answer.

Here they are only asked for: a runner has the draft model guess them (``runner.drafting``), each by
the random number that the target will draw with, so that the two agree as often as that allows.
(Daliri, Musco and Suresh 2024, https://arxiv.org/abs/2408.07978: one source of randomness for both,
so that what comes out does not depend on who guessed.)
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Final

from engine_service.scheduling.drafting import StepCost

# Stands for a token that the draft model is to guess.
TO_DRAFT: Final = -2
# What a first guess is trusted with, and how fast old ones are forgotten: of all answers, of one.
_PRIOR: Final = 0.7
_PRIOR_TRIES: Final = 4.0
_KEPT_OF_ALL: Final = 0.97
_TRIES_OF_ONE: Final = 2.0
_KEPT: Final = 0.9
# Where no guess pays, one is made for one answer of all in so many tokens: first the draft model
# has to compute what it has not seen of it, which may be a long prompt.
_TOKENS_BETWEEN_TRIALS: Final = 512


@dataclass(slots=True)
class Acceptance:
    """How often a guess is right where all before it are; old ones count less."""

    hits: float
    tries: float
    kept: float

    @property
    def rate(self) -> float:
        return self.hits / self.tries

    def note(self, *, n_drafted: int, n_accepted: int) -> None:
        """Take note of a draft of which so many were right before one was wrong."""
        for is_hit in [True] * n_accepted + [False] * (n_accepted < n_drafted):
            self.hits = self.hits * self.kept + is_hit
            self.tries = self.tries * self.kept + 1.0


class DraftModelUse:
    """What is known of a draft model. cost: of one of its steps by tokens; is learnt by others."""

    def __init__(self, cost: StepCost) -> None:
        self.cost = cost
        self.acceptance = Acceptance(
            hits=_PRIOR * _PRIOR_TRIES, tries=_PRIOR_TRIES, kept=_KEPT_OF_ALL
        )
        self._n_idle = 0

    def is_to_be_tried(self) -> bool:
        """Return whether a guess is to be made that does not seem to pay; called for each token of
        which that is so."""
        self._n_idle += 1
        return self._n_idle % _TOKENS_BETWEEN_TRIALS == 0

    def guess_s(self, n_rows: int) -> float:
        """Return how long one more guess for each of so many rows takes, 0 before it is known."""
        return self.cost.expected_s(n_rows) or 0.0


class ModelDrafter:
    """One answer's drafts, as ``Drafter``."""

    def __init__(self, use: DraftModelUse) -> None:
        self._use = use
        self._acceptance = Acceptance(
            hits=use.acceptance.rate * _TRIES_OF_ONE, tries=_TRIES_OF_ONE, kept=_KEPT
        )
        self._is_asked = False

    def draft(
        self, token_ids: SequenceOf[int], *, cost: StepCost, n_rows: int, most: int
    ) -> tuple[int, ...]:
        """Return a place for each token that is to be guessed, ``most`` at most."""
        n_draft = cost.worthwhile(
            self._acceptance.rate,
            n_rows=n_rows,
            most=most,
            guess_tokens=cost.in_tokens(self._use.guess_s(n_rows)),
        )
        if not n_draft:
            n_draft = int(self._use.is_to_be_tried())
        self._is_asked = n_draft > 0
        return (TO_DRAFT,) * n_draft

    def checked(self, *, n_drafted: int, n_accepted: int) -> None:
        """Hear of a draft that a step has checked, if it was this one's."""
        if self._is_asked:
            self._is_asked = False
            for acceptance in (self._acceptance, self._use.acceptance):
                acceptance.note(n_drafted=n_drafted, n_accepted=n_accepted)
