"""What a test of two arms finds, in the terms of ``comparing.Comparison``."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    effect: float | None
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    p_value: float | None
    is_reduced: bool = False


NOTHING = Bounds(
    effect=None, low=None, high=None,
    difference=None, difference_low=None, difference_high=None, p_value=None,
)  # fmt: skip
