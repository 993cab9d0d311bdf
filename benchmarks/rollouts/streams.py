"""Streams of requests of an old and a new version, and a whole rollout of them through the judging
functions that the controller calls: without a database, and with a clock that is only counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apps.rollouts.judging import Agreed, breach, missing, reference_step
from apps.rollouts.tallies import Tally
from apps.statistics.moments import Moments

LOOK_S: Final = 5.0  # as the controller is called
BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
_RARELY_AFTER: Final = 120  # looks; then each is this much later than the one before
_LATER_BY: Final = 1.01

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """error_rate, empty_rate: of all requests, of those that did not fail. ttft_ms, itl_ms:
    medians; sigma: of their logarithms."""

    error_rate: float = 0.005
    empty_rate: float = 0.01
    ttft_ms: float = 200.0
    itl_ms: float = 20.0
    sigma: float = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """is_back: rolled back, in this step; else it passed its last step, or a step lasted too long.
    after_s: from the start; n_requests: of both, n_candidate: of the new one, in all steps."""

    is_back: bool
    metric: str
    step: int
    after_s: float
    n_requests: int
    n_candidate: int


@dataclass(frozen=True, slots=True)
class Running:
    """Sums of one side of one step after each of its looks."""

    n: Ints
    failed: Ints
    answered: Ints
    empty: Ints
    logs: tuple[Ints, Ints]
    squares: tuple[Ints, Ints]

    def at(self, look: int) -> Tally:
        n, failed, answered = (int(each[look]) for each in (self.n, self.failed, self.answered))
        sums = {
            "error_rate": _rate(failed, n),
            "empty_rate": _rate(int(self.empty[look]), answered),
        }
        for name, logs, squares in zip(("ttft", "itl"), self.logs, self.squares, strict=True):
            y, yy = int(logs[look]), int(squares[look])
            sums[name] = Moments(n=answered, y=y, x=answered, yy=yy, yx=y, xx=answered)
        return Tally(n_requests=n, n_failed=failed, sums=sums)


def _rate(k: int, n: int) -> Moments:
    return Moments(n=n, y=k, x=n, yy=k, yx=k, xx=n)


def running(version: Version, counts: Ints, random: np.random.Generator) -> Running:
    """Draw the requests of one side: counts[i] of them come between looks i - 1 and i."""
    total, ends = int(counts.sum()), np.cumsum(counts)
    is_failed = random.random(total) < version.error_rate
    is_empty = ~is_failed & (random.random(total) < version.empty_rate)
    logs, squares = [], []
    for median_ms in (version.ttft_ms, version.itl_ms):
        log_us = np.log(median_ms * 1000) + version.sigma * random.standard_normal(total)
        micro = np.where(is_failed, 0, np.rint(1e6 * log_us)).astype(np.int64)
        logs.append(_at(ends, micro))
        squares.append(_at(ends, micro**2))
    failed = _at(ends, is_failed)
    return Running(
        n=ends,
        failed=failed,
        answered=ends - failed,
        empty=_at(ends, is_empty),
        logs=(logs[0], logs[1]),
        squares=(squares[0], squares[1]),
    )


def _at(ends: Ints, values: NDArray[np.generic]) -> Ints:
    sums = np.concatenate([[0], np.cumsum(values.astype(np.int64))])
    found: Ints = sums[ends]
    return found


def looks(most_s: float) -> NDArray[np.float64]:
    """Return when there are looks: as often as the controller looks, and after ten minutes ever
    more rarely, which finds nothing earlier and saves computing."""
    times = list(np.arange(1, _RARELY_AFTER + 1) * LOOK_S)
    while times[-1] < most_s:
        times.append(max(times[-1] + LOOK_S, times[-1] * _LATER_BY))
    return np.array([each for each in times if each <= most_s] or [most_s])


def rollout(
    agreed: Agreed,
    *,
    old: Version,
    new: Version,
    per_second: float,
    most_step_s: float,
    random: np.random.Generator,
    first: int = 0,
) -> Ended:
    """Run one until it is rolled back, has passed its last step, or a step lasted the longest.
    per_second: requests of both sides together, by chance. first: the step to begin with."""
    after_s, n_requests, n_candidate = 0.0, 0, 0
    before = Tally()
    for step in range(first, len(agreed.steps)):
        spec, times = agreed.steps[step], looks(most_step_s)
        share = spec.percent / 100
        spans = np.diff(times, prepend=0.0) * per_second
        theirs = running(old, random.poisson(spans * (1 - share)), random)
        ours = running(new, random.poisson(spans * share), random)
        for look, at_s in enumerate(times):
            own, candidate = theirs.at(look), ours.at(look)
            baseline = own if reference_step(agreed, step) == step else before
            worst = breach(agreed, step, baseline=baseline, candidate=candidate)
            since, now = BEGIN, BEGIN + timedelta(seconds=float(at_s))
            is_over = missing(spec, candidate=candidate, since=since, now=now).is_nothing
            if worst is not None or is_over:
                break
        after_s += float(at_s)
        n_requests += own.n_requests + candidate.n_requests
        n_candidate += candidate.n_requests
        if worst is not None or not is_over:
            break
        before = own
    return Ended(
        is_back=worst is not None,
        metric=worst.guardrail.metric if worst is not None else "",
        step=step,
        after_s=after_s,
        n_requests=n_requests,
        n_candidate=n_candidate,
    )


def middle(values: Sequence[float], part: float) -> float:
    """Return the value below which that part of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
