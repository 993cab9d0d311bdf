"""Whole numbers for shares: how the weights of a route divide what its old version got between it
and the new one, while everybody else keeps what they have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MOST_WEIGHT: Final = 1000  # as routes have it


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """others: key → weight. percent: what the candidate really gets of both sides' share. off: how
    far that is from what was wanted, relative to it; others_off: the same, at worst, of what
    anybody else gets beside both sides."""

    baseline: int
    candidate: int
    others: Mapping[int, int]
    percent: float
    off: float
    others_off: float


def split(percent: float, *, baseline: int, others: Mapping[int, int]) -> Split:
    """Return the weights that come closest. percent: above 0, up to 100. baseline: the weight of
    both sides together; others: key → weight of everybody else's, as they are.

    At 100 the weights stay on their own scale. Else each total of both sides that fits is tried,
    and the largest of the best is taken; both sides get at least 1.
    """
    if percent == 100:
        return Split(
            baseline=0, candidate=baseline, others=dict(others), percent=100.0, off=0.0,
            others_off=0.0,
        )  # fmt: skip
    weighted = {key: weight for key, weight in others.items() if weight}
    tried = (
        _with_total(total, percent, baseline=baseline, others=weighted)
        for total in range(_most(percent, baseline=baseline, others=weighted), 1, -1)
    )
    best = min(tried, key=lambda each: round(max(each.off, each.others_off), 9))
    return Split(
        baseline=best.baseline,
        candidate=best.candidate,
        others={key: best.others.get(key, 0) for key in others},
        percent=best.percent,
        off=best.off,
        others_off=best.others_off,
    )


def _most(percent: float, *, baseline: int, others: Mapping[int, int]) -> int:
    """Return the largest total of both sides with which no weight is too large; 2 at least."""
    larger = max(percent, 100 - percent) / 100
    scale = baseline / max(others.values(), default=baseline)
    return max(2, int(min(MOST_WEIGHT / larger, MOST_WEIGHT * scale)))


def _with_total(total: int, percent: float, *, baseline: int, others: Mapping[int, int]) -> Split:
    candidate = min(max(round(total * percent / 100), 1), total - 1)
    rest = {
        key: min(max(round(weight * total / baseline), 1), MOST_WEIGHT)
        for key, weight in others.items()
    }
    got = 100 * candidate / total
    off = [abs(rest[key] * baseline / (total * weight) - 1) for key, weight in others.items()]
    return Split(
        baseline=min(total - candidate, MOST_WEIGHT),
        candidate=candidate,
        others=rest,
        percent=got,
        off=abs(got / percent - 1),
        others_off=max(off, default=0.0),
    )
