"""Arms of tests, unit by unit."""

import math
import random
from collections.abc import Iterable

from apps.statistics.moments import Moments

Unit = tuple[int, int, int, int]  # y, x, v, u


def whole(units: Iterable[Unit]) -> Moments:
    return sum((Moments.of(*unit) for unit in units), Moments())


def rate_arm(n: int, successes: int) -> Moments:
    """An arm whose units have one trial each."""
    return Moments(n, successes, n, 0, 0, successes, successes, 0, 0, n)


def latencies(
    n: int, *, seed: int, effect: float = 0.0, has_past: bool = False, is_log: bool = False
) -> list[Unit]:
    """People with some requests of log-normal microseconds, and some before."""
    chosen = random.Random(seed)

    def total(n_requests: int, level: float) -> int:
        logs = [chosen.gauss(level, 0.5) for _ in range(n_requests)]
        return sum(round(1e6 * value) if is_log else round(math.exp(value)) for value in logs)

    units = []
    for _ in range(n):
        level = 12 + chosen.gauss(0, 0.6)
        x = chosen.randint(1, 4)
        u = chosen.randint(1, 4) if has_past and chosen.random() < 0.8 else 0
        units.append((total(x, level + math.log1p(effect)), x, total(u, level), u))
    return units
