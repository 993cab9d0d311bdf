"""Counts of times by bucket. Two of them add up to one, and the more a bucket knows, the less an
estimate of a percentile is off: never more than the bucket that it falls in is wide."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

# Upper ends, in milliseconds; a last bucket takes what is longer.
BOUNDS_MS: Final = (
    5, 10, 20, 35, 50, 75, 100, 150, 200, 300, 500, 750, 1_000, 1_500, 2_000, 3_000, 5_000, 7_500,
    10_000, 15_000, 20_000, 30_000, 45_000, 60_000, 120_000, 300_000, 600_000,
)  # fmt: skip


def empty() -> list[int]:
    return [0] * (len(BOUNDS_MS) + 1)


def bucket_of(value_ms: float) -> int:
    """Return the index of the bucket of a time."""
    return bisect_left(BOUNDS_MS, value_ms)


def added(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [mine + theirs for mine, theirs in zip(one, other, strict=True)]


def percentile_ms(buckets: Sequence[int], share: float) -> float | None:
    """Estimate the time that ``share`` of all did not take longer than; None where there are none.

    Within a bucket times are taken to lie evenly. Of the last one only its beginning is known.
    """
    n_all = sum(buckets)
    if not n_all:
        return None
    rank, n_before = share * n_all, 0
    for index, n_here in enumerate(buckets[:-1]):
        if n_here and n_before + n_here >= rank:
            low = BOUNDS_MS[index - 1] if index else 0
            return low + (BOUNDS_MS[index] - low) * max(0.0, rank - n_before) / n_here
        n_before += n_here
    return float(BOUNDS_MS[-1])
