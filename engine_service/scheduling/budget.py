"""How many tokens a step may compute, and how prefills share them."""

from collections.abc import Sequence as SequenceOf

from engine_service.scheduling.sequence import Sequence

_MAX_SHRINK = 0.5
_MAX_GROWTH = 1.25
_MIN_PREFILL_PART = 32
_CHUNKS_PER_STEP = 8
_MAX_LONG_PREFILLS = 4


class StepBudget:
    """Follows a target inter-token latency: a step that decodes and prefills should take that long.

    After each such step the budget is multiplied by target / measured, within bounds. Where the
    time of a step is a + b * tokens, this tends to (target - a) / b without swinging over it. A
    step that decodes nothing keeps nobody waiting and may be of the full size.

    target_itl_s: None makes every step's budget ``max_tokens``.
    """

    def __init__(self, *, max_tokens: int, target_itl_s: float | None) -> None:
        self._max_tokens = max_tokens
        self._target_itl_s = target_itl_s
        self._min_prefill = max(1, max_tokens // _MIN_PREFILL_PART)
        self._tokens = max_tokens / 4

    def for_prefill(self, *, n_decodes: int) -> int:
        """Return how many tokens of prompts may go with so many decodes."""
        left = self._max_tokens - n_decodes
        if self._target_itl_s is None or not n_decodes:
            return left
        return min(left, max(self._min_prefill, round(self._tokens) - n_decodes))

    def record(self, *, n_decodes: int, n_prefill: int, step_s: float) -> None:
        """Learn from a step that was computed."""
        if self._target_itl_s is None or not n_decodes or not n_prefill:
            return
        ratio = self._target_itl_s / max(step_s, 1e-9)
        n_tokens = n_decodes + n_prefill
        if ratio < 1.0:
            self._tokens = min(self._tokens, n_tokens * max(ratio, _MAX_SHRINK))
        elif n_tokens >= round(self._tokens):  # else it says nothing about a fuller step
            self._tokens *= min(ratio, _MAX_GROWTH)
        least = n_decodes + self._min_prefill
        self._tokens = float(min(max(self._tokens, least), self._max_tokens))


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
    sure = min(wants[0], (budget + 1) // 2)
    wants[0] -= sure
    left = budget - sure - sum(want for want in wants if want <= n_uncomputed)
    return left >= min(n_uncomputed, max(1, budget // _CHUNKS_PER_STEP))


def share_prefill(prefills: SequenceOf[Sequence], *, budget: int) -> list[tuple[Sequence, int]]:
    """Return who prefills how many tokens: the first is sure of half, then the shortest go first.

    So a long prompt does not hold short ones back, nor they it; and prompts of one length, of
    which the first is always the nearest to its end, are computed one after the other.
    """
    if not prefills or budget < 1:
        return []
    grants = [min(prefills[0].n_uncomputed, (budget + 1) // 2), *([0] * (len(prefills) - 1))]
    left = budget - grants[0]
    wants = [seq.n_uncomputed - grant for seq, grant in zip(prefills, grants, strict=True)]
    for index in sorted(range(len(prefills)), key=wants.__getitem__):
        extra = min(wants[index], left)
        grants[index] += extra
        left -= extra
    return [(seq, grant) for seq, grant in zip(prefills, grants, strict=True) if grant]
