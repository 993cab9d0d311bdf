"""The circuit breaker of a replica: each way from state to state, and what moves none."""

from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import given

from apps.routing.breaker import (
    CONSECUTIVE_FAILURES,
    FIRST_OPEN_S,
    LEAST_OUTCOMES,
    LONGEST_OPEN_S,
    Breaker,
    Trial,
)


def fail(breaker: Breaker, *, now_s: float = 0.0, is_gone: bool = False) -> None:
    trial = breaker.begin()
    breaker.failed(trial, now_s=now_s, is_gone=is_gone)
    breaker.leave(trial)


def succeed(breaker: Breaker) -> None:
    trial = breaker.begin()
    breaker.succeeded(trial)
    breaker.leave(trial)


def opened() -> Breaker:
    breaker = Breaker()
    fail(breaker, is_gone=True)
    assert breaker.state(0.0) == "open"
    return breaker


def test_failures_one_after_another_open_it() -> None:
    breaker = Breaker()
    for _ in range(CONSECUTIVE_FAILURES - 1):
        fail(breaker)
    succeed(breaker)  # begins the count anew
    for _ in range(CONSECUTIVE_FAILURES - 1):
        fail(breaker)
        assert breaker.admits(0.0)
    fail(breaker)
    assert breaker.state(0.0) == "open"
    assert not breaker.admits(FIRST_OPEN_S - 0.001)


def test_a_share_of_failures_opens_it() -> None:
    breaker = Breaker()
    for _ in range(LEAST_OUTCOMES // 2 - 1):
        fail(breaker)
        succeed(breaker)
    fail(breaker)
    assert breaker.state(0.0) == "closed"  # one outcome less than says anything
    succeed(breaker)
    fail(breaker)
    assert breaker.state(0.0) == "open"


def test_a_replica_that_is_gone_opens_it_at_once() -> None:
    opened()


def test_half_open_lets_one_try_at_a_time() -> None:
    breaker = opened()
    assert not breaker.admits(FIRST_OPEN_S / 2)
    assert breaker.state(FIRST_OPEN_S) == "half_open"
    assert breaker.admits(FIRST_OPEN_S)
    probe = breaker.begin()
    assert not breaker.admits(FIRST_OPEN_S)
    breaker.leave(probe)  # its client left: nothing is known
    assert breaker.admits(FIRST_OPEN_S)
    assert breaker.state(FIRST_OPEN_S) == "half_open"


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = opened()
    probe = breaker.begin()
    breaker.succeeded(probe)
    assert breaker.state(0.0) == "closed"
    breaker.leave(probe)
    assert breaker.admits(0.0)


def test_each_probe_that_fails_doubles_the_pause() -> None:
    breaker, now_s, pauses = opened(), 0.0, []
    for _ in range(7):
        pause_s = breaker.opened_until_s - now_s
        pauses.append(pause_s)
        now_s += pause_s
        fail(breaker, now_s=now_s)
        assert breaker.state(now_s) == "open"
    assert pauses == [1, 2, 4, 8, 16, LONGEST_OPEN_S, LONGEST_OPEN_S]
    succeed(breaker)
    fail(breaker, now_s=now_s, is_gone=True)
    assert breaker.opened_until_s - now_s == FIRST_OPEN_S


def test_many_streams_that_die_at_once_open_it_once() -> None:
    breaker = Breaker()
    trials = [breaker.begin() for _ in range(16)]
    for trial in trials:
        breaker.failed(trial, now_s=0.0, is_gone=True)
    assert breaker.opened_until_s == FIRST_OPEN_S


@pytest.mark.parametrize("is_good", [True, False])
def test_what_began_before_it_opened_says_nothing(is_good: bool) -> None:
    breaker = Breaker()
    old = breaker.begin()
    fail(breaker, is_gone=True)
    if is_good:
        breaker.succeeded(old)
    else:
        breaker.failed(old, now_s=5.0)
    assert breaker.opened_until_s == FIRST_OPEN_S
    assert breaker.state(0.0) == "open"
    breaker.leave(old)
    assert breaker.admits(FIRST_OPEN_S)


EVENTS = ["begin", "good", "bad", "gone", "leave", "wait"]


@dataclass
class _Run:
    """Trials that are open, and the time."""

    breaker: Breaker = field(default_factory=Breaker)
    trials: list[Trial] = field(default_factory=list)
    now_s: float = 0.0


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(0, 40))))
def test_whatever_happens_it_can_always_be_closed_again(
    events: list[tuple[str, float]],
) -> None:
    run = _Run()
    breaker = run.breaker
    for event, amount in events:
        before = breaker.state(run.now_s)
        match event:
            case "wait":
                run.now_s += amount
                after = breaker.state(run.now_s)
                assert (before, after) in {
                    ("closed", "closed"),
                    ("open", "open"),
                    ("open", "half_open"),
                    ("half_open", "half_open"),
                }
            case "begin":
                run.trials.append(breaker.begin())
                assert breaker.state(run.now_s) == before
            case _ if run.trials:
                trial = run.trials.pop(int(amount) % len(run.trials))
                if event == "good":
                    breaker.succeeded(trial)
                    assert breaker.state(run.now_s) in {before, "closed"}
                elif event != "leave":
                    breaker.failed(trial, now_s=run.now_s, is_gone=event == "gone")
                    assert breaker.state(run.now_s) in {before, "open"}
                    assert breaker.opened_until_s <= run.now_s + LONGEST_OPEN_S
                breaker.leave(trial)
    for trial in run.trials:
        breaker.leave(trial)
    run.now_s += LONGEST_OPEN_S
    assert breaker.admits(run.now_s)
    succeed(breaker)
    assert breaker.state(run.now_s) == "closed"
