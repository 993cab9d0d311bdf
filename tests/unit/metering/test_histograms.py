"""Percentiles of counted times: never further off than a bucket is wide."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.metering.histograms import BOUNDS_MS, added, bucket_of, empty, percentile_ms


def histogram(*times_ms: float) -> list[int]:
    buckets = empty()
    for time_ms in times_ms:
        buckets[bucket_of(time_ms)] += 1
    return buckets


@pytest.mark.parametrize(
    ("time_ms", "index"),
    [(0.0, 0), (5.0, 0), (5.01, 1), (600_000.0, len(BOUNDS_MS) - 1), (600_001.0, len(BOUNDS_MS))],
)
def test_a_bound_belongs_to_the_bucket_that_it_ends(time_ms: float, index: int) -> None:
    assert bucket_of(time_ms) == index


def test_of_nothing_there_is_no_percentile() -> None:
    assert percentile_ms(empty(), 0.5) is None


def test_times_lie_evenly_in_their_bucket() -> None:
    even = histogram(*[120.0] * 10)  # 100 to 150
    assert percentile_ms(even, 0.5) == 125.0
    assert percentile_ms(even, 1.0) == 150.0
    assert percentile_ms(histogram(*[10**9] * 3), 0.5) == 600_000.0


@given(st.lists(st.floats(0, 600_000), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_an_estimate_lies_in_the_bucket_of_the_true_value(
    times_ms: list[float], share: float
) -> None:
    n_first = len(times_ms) // 2
    buckets = added(histogram(*times_ms[:n_first]), histogram(*times_ms[n_first:]))
    assert buckets == histogram(*times_ms)
    rank = -int(-share * len(times_ms) // 1)
    index = bucket_of(sorted(times_ms)[rank - 1])
    estimate = percentile_ms(buckets, share)
    assert estimate is not None
    assert (BOUNDS_MS[index - 1] if index else 0) <= estimate <= BOUNDS_MS[index]
