"""Many arms and metrics at once: what is left of each p-value, and the level of each interval."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Return adjusted p-values: who rejects those up to alpha is wrong about any with probability
    alpha at most (Holm, Scandinavian Journal of Statistics 1979).

    It holds whatever depends on what. Of always-valid p-values it holds at every look together,
    as each is wrong at any time with no more than its level.
    """
    adjusted: dict[K, float] = {}
    worst = 0.0
    for rank, (key, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_value))
        adjusted[key] = worst
    return {key: adjusted[key] for key in p_values}


def bonferroni(alpha: float, n_intervals: int) -> float:
    """Return the level for each of so many intervals that are to hold all at once."""
    return alpha / max(n_intervals, 1)
