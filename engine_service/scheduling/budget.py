"""How many tokens a step may compute, and how prefills share them."""

import math
from collections.abc import Sequence as SequenceOf

from engine_service.scheduling.drafting import StepCost
from engine_service.scheduling.sequence import Sequence

_MAX_SHRINK = 0.5
_MAX_GROWTH = 1.25
_MAX_STEP_S = 1.0
_FIRST_STEP = 64
_NEWS = 0.2
_MIN_PREFILL_PART = 64
_STEPS_PER_LOOK = 32
_PROMPT_WEIGHT = 3.0
_CHUNKS_PER_STEP = 8
_FIRST_PART = 4
_MAX_LONG_PREFILLS = 4


class StepBudget:
    """Bounds the time of a step that decodes and prefills, which is what streams see as latency.

    After each such step the budget is multiplied by target / measured, within bounds. Where the
    time of a step is a + b * tokens, this tends to (target - a) / b without swinging over it. A
    step that decodes nothing keeps nobody waiting, and only new requests, aborts and pings, which
    are heard between two steps, bound it: to what was computed in about a second. What a token
    takes is learnt from a small first step.

    target_itl_s: how long such a step should take. prefill_slowdown: or how many times as long as
    one with the same decodes only would; where many wait for a first token, each of
    whom counts as three who wait for the next, that times the prompts to a decode. Of both the
    smaller counts; with neither, every step's budget is ``max_tokens``. While prompts go on and on,
    a step now and then has none, to see what decodes alone take by now. cost: of decodes; it learns
    here.
    """

    def __init__(
        self,
        *,
        cost: StepCost,
        max_tokens: int,
        target_itl_s: float | None,
        prefill_slowdown: float | None,
    ) -> None:
        self._cost = cost
        self._max_tokens = max_tokens
        self._target_itl_s = math.inf if target_itl_s is None else target_itl_s
        self._slowdown = math.inf if prefill_slowdown is None else prefill_slowdown
        self._token_s = 0.0
        self._min_prefill = max(1, max_tokens // _MIN_PREFILL_PART)
        self._tokens: float | None = None
        self._prompts_per_decode = 1.0
        self._n_mixed = 0  # steps since the last that only decoded

    @property
    def _is_bounded(self) -> bool:
        return min(self._target_itl_s, self._slowdown) < math.inf

    def for_prefill(self, *, n_streams: int, n_decodes: int, n_prompts: int) -> int:
        """Return how many tokens may go with so many decodes, of the prompts there are.

        n_streams: whose next tokens these decodes are; with their drafts there are more.
        """
        if n_streams:
            self._prompts_per_decode = max(1.0, _PROMPT_WEIGHT * n_prompts / n_streams)
        left = self._max_tokens - n_decodes
        if not self._is_bounded:
            return left
        if n_decodes and self._slowdown < math.inf and self._n_mixed >= _STEPS_PER_LOOK:
            return 0
        most = _MAX_STEP_S / self._token_s if self._token_s else _FIRST_STEP
        if n_decodes:
            most = min(most, round(self._tokens or self._first_guess(n_decodes)) - n_decodes)
        return int(min(left, max(self._min_prefill, most)))

    def record(self, *, n_decodes: int, n_prefill: int, step_s: float) -> None:
        """Learn from a step that was computed."""
        if n_prefill:
            known_s = self._token_s or step_s / (n_decodes + n_prefill)
            self._token_s = known_s + _NEWS * (step_s / (n_decodes + n_prefill) - known_s)
        if not n_decodes:
            return
        self._n_mixed = self._n_mixed + 1 if n_prefill else 0
        if not n_prefill:
            self._cost.record(n_tokens=n_decodes, step_s=step_s)
            return
        if (target_s := self._target_s(n_decodes)) < math.inf:
            self._follow(target_s, n_decodes=n_decodes, n_prefill=n_prefill, step_s=step_s)

    def _target_s(self, n_decodes: int) -> float:
        decode_s = self._cost.expected_s(n_decodes)
        if decode_s is None:
            return self._target_itl_s
        return min(self._target_itl_s, self._slowdown * self._prompts_per_decode * decode_s)

    def _first_guess(self, n_decodes: int) -> float:
        """Return a budget for the first step of its kind, from what other steps took."""
        target_s = self._target_s(n_decodes)
        if target_s == math.inf or not self._token_s:
            return self._max_tokens / 4
        decode_s = self._cost.expected_s(n_decodes) or 0.0
        return n_decodes + max(0.0, target_s - decode_s) / self._token_s

    def _follow(self, target_s: float, *, n_decodes: int, n_prefill: int, step_s: float) -> None:
        ratio = target_s / max(step_s, 1e-9)
        n_tokens = n_decodes + n_prefill
        tokens = float(n_tokens) if self._tokens is None else self._tokens
        if ratio < 1.0:
            tokens = min(tokens, n_tokens * max(ratio, _MAX_SHRINK))
        elif n_tokens >= round(tokens):  # else it says nothing about a fuller step
            tokens *= min(ratio, _MAX_GROWTH)
        least = n_decodes + self._min_prefill
        self._tokens = float(min(max(tokens, least), self._max_tokens))


def has_prefill_room(prefills: SequenceOf[Sequence], *, n_uncomputed: int, budget: int) -> bool:
    """Return whether to admit one more prefill now, of ``n_uncomputed`` tokens.

    Only if it gets a chunk worth having of this step: later it may find more of its prefix cached.
    A few that are longer than a step come in anyway, so that short ones behind them can.
    """
    if not prefills:
        return budget > 0
    if n_uncomputed > budget:
        n_long = sum(sequence.n_uncomputed > budget for sequence in prefills)
        return budget > 0 and n_long < _MAX_LONG_PREFILLS
    wants = [sequence.n_uncomputed for sequence in prefills]
    sure = min(wants[0], -(-budget // _FIRST_PART))
    wants[0] -= sure
    left = budget - sure - sum(want for want in wants if want <= n_uncomputed)
    return left >= min(n_uncomputed, max(1, budget // _CHUNKS_PER_STEP))


def share_prefill(prefills: SequenceOf[Sequence], *, budget: int) -> list[tuple[Sequence, int]]:
    """Return who prefills how many tokens: a quarter is the first's, then the shortest go first.

    So a long prompt does not hold short ones back, nor they it; and prompts of one length, of
    which the first is always the nearest to its end, are computed one after the other.
    """
    if not prefills or budget < 1:
        return []
    grants = [
        min(prefills[0].n_uncomputed, -(-budget // _FIRST_PART)),
        *([0] * (len(prefills) - 1)),
    ]
    left = budget - grants[0]
    wants = [seq.n_uncomputed - grant for seq, grant in zip(prefills, grants, strict=True)]
    for index in sorted(range(len(prefills)), key=wants.__getitem__):
        extra = min(wants[index], left)
        grants[index] += extra
        left -= extra
    return [(seq, grant) for seq, grant in zip(prefills, grants, strict=True) if grant]
