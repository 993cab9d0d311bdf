"""Finding the least of a function of one number."""

from collections.abc import Callable
from math import sqrt
from typing import Final

STEPS: Final = 40
GOLDEN: Final = (sqrt(5) - 1) / 2


def least_at(value: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function with one valley is least, by golden section. low and high come in
    either order."""
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = value(left), value(right)
    for _ in range(STEPS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = value(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = value(right)
        if abs(high - low) < 1e-7:
            break
    return (low + high) / 2
