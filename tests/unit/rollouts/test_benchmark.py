"""That the benchmark's streams are what the controller would have counted."""

from dataclasses import replace
from math import log

import numpy as np
import pytest

from apps.rollouts.judging import Agreed
from apps.rollouts.types import DEFAULT_GUARDRAILS, DEFAULT_STEPS
from benchmarks.rollouts.streams import LOOK_S, Version, looks, rollout, running

AGREED = Agreed(steps=DEFAULT_STEPS, guardrails=DEFAULT_GUARDRAILS, alpha=0.05)
OLD = Version()


def test_sums_after_each_look() -> None:
    counts = np.array([3, 0, 500])
    found = running(replace(OLD, error_rate=0.2, sigma=0.0), counts, np.random.default_rng(1))
    assert [found.at(look).n_requests for look in range(3)] == [3, 3, 503]
    tally = found.at(2)
    errors, times = tally.of("error_rate"), tally.of("ttft")
    assert (errors.n, errors.y, errors.x, errors.yy) == (503, tally.n_failed, 503, tally.n_failed)
    assert 60 < tally.n_failed < 140
    y = round(1e6 * log(200_000))
    assert (times.n, times.y, times.yy) == (errors.n - errors.y, times.n * y, times.n * y * y)
    assert tally.of("empty_rate").n == times.n


def test_looks_are_as_often_as_the_controllers_at_first() -> None:
    times = looks(3600.0)
    assert list(times[:3]) == [LOOK_S, 2 * LOOK_S, 3 * LOOK_S]
    assert all(np.diff(times) >= LOOK_S - 1e-9)
    assert 3500 < times[-1] <= 3600


@pytest.mark.parametrize(("more", "is_back"), [(0.0, False), (0.5, True)])
def test_a_whole_rollout(more: float, is_back: bool) -> None:
    ended = rollout(
        AGREED,
        old=OLD,
        new=replace(OLD, error_rate=OLD.error_rate + more),
        per_second=20.0,
        most_step_s=1800.0,
        random=np.random.default_rng(5),
    )
    assert (ended.is_back, ended.step) == (is_back, 0 if is_back else 3)
    if is_back:
        assert ended.metric == "error_rate"
        assert ended.n_candidate < 40
    else:
        assert ended.after_s >= 15 * 60
