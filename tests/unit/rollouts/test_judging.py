"""What a request says, what sums of that are judged to be, and how it is told."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import exp, log
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.metering.types import ObservedRequest, Outcome
from apps.rollouts.counting import arm, arm_read, counts, said_by, tallied
from apps.rollouts.judging import Agreed, breach, judged, missing, planned_units, reference_step
from apps.rollouts.tallies import Tally
from apps.rollouts.types import DEFAULT_GUARDRAILS, DEFAULT_STEPS, GuardrailSpec, StepSpec
from apps.rollouts.wording import breach_said, line_of
from apps.statistics.moments import Moments

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AGREED = Agreed(steps=DEFAULT_STEPS, guardrails=DEFAULT_GUARDRAILS, alpha=0.05)


def request(**fields: Any) -> ObservedRequest:
    values: dict[str, Any] = {
        "request_id": "r", "arm": "r1.0.c", "tenant_id": 1, "api_token_id": None, "end_user": "",
        "door": "rest", "route_name": "chat", "deployment_id": 1, "model_version_id": 1,
        "attempt": 1, "is_fallback": False, "outcome": Outcome.COMPLETED, "finish_reason": "stop",
        "n_prompt_tokens": 9, "n_completion_tokens": 11, "cost_micro": 0, "ttft_ms": 100.0,
        "total_ms": 300.0, "created_at": NOW,
    }  # fmt: skip
    return ObservedRequest(**{**values, **fields})


def rated(metric: str, k: int, n: int) -> dict[str, Moments]:
    return {metric: Moments(n=n, y=k, x=n, yy=k, yx=k, xx=n)}


def errors(k: int, n: int) -> Tally:
    return Tally(n_requests=n, n_failed=k, sums=rated("error_rate", k, n))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, {"error_rate": 0, "empty_rate": 0, "ttft": 11_512_925, "itl": 9_903_488}),
        ({"outcome": Outcome.ABORTED}, {}),
        ({"outcome": Outcome.FAILED}, {"error_rate": 1}),
        ({"outcome": Outcome.INTERRUPTED}, {"error_rate": 1}),
        ({"n_completion_tokens": 1}, {"error_rate": 0, "empty_rate": 1, "ttft": 11_512_925}),
        ({"finish_reason": "content_filter", "ttft_ms": None}, {"error_rate": 0, "empty_rate": 1}),
        ({"ttft_ms": 0.0, "n_completion_tokens": 0},
         {"error_rate": 0, "empty_rate": 1, "ttft": 0}),
    ],
)  # fmt: skip
def test_what_a_request_says(fields: dict[str, Any], said: dict[str, int]) -> None:
    assert said_by(request(**fields)) == said


def test_whose_requests_count() -> None:
    assert counts(request())
    assert not counts(request(attempt=2))
    assert not counts(request(is_fallback=True))


@given(st.integers(1, 10**12), st.integers(0, 99), st.sampled_from(["baseline", "candidate"]))
def test_arms_are_read_as_they_were_written(pk: int, step: int, side: str) -> None:
    assert arm_read(arm(pk, step, side)) == (pk, step, side)


@pytest.mark.parametrize(
    "text", ["", "r", "r1", "r1.0", "r1.0.x", "x1.0.b", "r-1.0.b", "r1.a.b", "r1.0.b.c", "r1..b"]
)
def test_other_arms_are_nobodys(text: str) -> None:
    assert arm_read(text) is None


@given(
    st.lists(
        st.builds(
            request,
            outcome=st.sampled_from(Outcome),
            n_completion_tokens=st.integers(0, 50),
            ttft_ms=st.none() | st.floats(0.1, 1e5),
            total_ms=st.none() | st.floats(0.1, 1e5),
        ),
        max_size=12,
    ),
    st.integers(0, 12),
)
def test_sums_of_parts_are_the_sum_of_the_whole(rows: Sequence[ObservedRequest], at: int) -> None:
    assert tallied(rows[:at]) + tallied(rows[at:]) == tallied(rows)
    assert tallied(rows[::-1]) == tallied(rows)


def test_the_level_is_shared() -> None:
    assert AGREED.level == pytest.approx(0.05 / (4 * 5))


@given(
    st.integers(0, 3), st.integers(0, 400), st.integers(0, 100), st.integers(0, 400),
    st.integers(0, 100),
)  # fmt: skip
def test_the_short_way_finds_what_the_long_way_finds(
    step: int, n_old: int, k_old: int, n_new: int, k_new: int
) -> None:
    agreed = Agreed(steps=DEFAULT_STEPS, guardrails=DEFAULT_GUARDRAILS[:1], alpha=0.05)
    old, new = errors(min(k_old, n_old), n_old), errors(min(k_new, n_new), n_new)
    [verdict] = judged(agreed, step, baseline=old, candidate=new)
    found = breach(agreed, step, baseline=old, candidate=new)
    assert (found == verdict) if verdict.is_breached else (found is None)


def test_much_worse_is_seen_in_few_requests() -> None:
    old = errors(0, 2950)
    n = next(n for n in range(1, 40)
             if breach(AGREED, 0, baseline=old, candidate=errors(n, n)) is not None)  # fmt: skip
    assert n <= 8
    assert breach(AGREED, 0, baseline=old, candidate=errors(0, 10_000)) is None


def test_how_a_failing_version_is_told() -> None:
    found = breach(AGREED, 0, baseline=errors(0, 2950), candidate=errors(23, 31))
    assert found is not None
    said = breach_said(found, percent=1, candidate="smollm2-bad")
    assert said == (
        "Rolled back at 1 %: 23 of 31 requests of smollm2-bad failed (old version: 0 of 2,950). "
        f"The failure rate is at least {100 * (found.low or 0):.0f} points worse; 1 was allowed."
    )
    assert 0.2 < (found.low or 0) < 23 / 31


def test_a_breach_of_rates_is_told_first() -> None:
    def both(k: int, n: int, ms: float) -> Tally:
        rows = [request(ttft_ms=ms * exp(0.1 * (i % 5))) for i in range(n)]
        return tallied([*rows, *[request(outcome=Outcome.FAILED)] * k])

    found = breach(AGREED, 1, baseline=both(0, 300, 100), candidate=both(100, 200, 900))
    assert found is not None
    assert found.guardrail.metric == "error_rate"
    slow = breach(AGREED, 1, baseline=both(0, 300, 100), candidate=both(0, 200, 900))
    assert slow is not None
    said = breach_said(slow, percent=10, candidate="new")
    assert said.startswith("Rolled back at 10 %: the time to the first token of new is 1,099 ms")
    assert said.endswith(" % longer; 25 % was allowed.")


def test_times_are_not_compared_with_another_load() -> None:
    def timed(ms: float) -> Tally:
        return tallied([request(ttft_ms=ms * exp(0.1 * (i % 5))) for i in range(200)])

    assert reference_step(AGREED, 2) == 2
    assert reference_step(AGREED, 3) == 2
    assert reference_step(Agreed(steps=DEFAULT_STEPS[3:], guardrails=(), alpha=0.05), 0) is None
    assert breach(AGREED, 2, baseline=timed(100), candidate=timed(900)) is not None
    assert breach(AGREED, 3, baseline=timed(100), candidate=timed(900)) is None


@pytest.mark.parametrize(
    ("old", "new", "verdict", "tone"),
    [
        (errors(0, 0), errors(0, 0), "Nothing to judge yet.", "busy"),
        (errors(0, 0), errors(0, 9), "There is nothing of the old version to compare with.",
         "busy"),
        (errors(0, 90), errors(0, 9),
         "No sign of being worse than allowed; not ruled out yet: 1 point is allowed.", "busy"),
        (errors(0, 9000), errors(0, 9000), "At most ", "good"),
        (errors(100, 9000), errors(200, 9000),
         "At least 0.26 points worse, and", "warn"),
        (errors(0, 9000), errors(900, 9000), "At least ", "bad"),
        (errors(900, 9000), errors(0, 9000), "Better by ", "good"),
    ],
)  # fmt: skip
def test_how_a_guardrail_is_read(old: Tally, new: Tally, verdict: str, tone: str) -> None:
    agreed = Agreed(steps=DEFAULT_STEPS, guardrails=DEFAULT_GUARDRAILS[:1], alpha=0.05)
    [found] = judged(agreed, 2, baseline=old, candidate=new)
    line = line_of(found)
    assert line.verdict.startswith(verdict)
    assert (line.label, line.tone) == ("Failed requests", tone)
    assert line.is_breached is (tone == "bad")


def test_what_a_step_waits_for() -> None:
    spec = StepSpec(percent=10, min_requests=5, min_minutes=2)
    left = missing(spec, candidate=errors(1, 3), since=NOW, now=NOW + timedelta(seconds=30))
    assert (left.n_requests, left.minutes, left.is_nothing) == (2, 1.5, False)
    left = missing(spec, candidate=errors(1, 9), since=NOW, now=NOW + timedelta(minutes=3))
    assert left.is_nothing


def test_a_client_that_left_does_not_pass_a_step() -> None:
    rows = [request(outcome=Outcome.ABORTED)] * 5
    left = missing(StepSpec(percent=1, min_requests=5, min_minutes=0), candidate=tallied(rows),
                   since=NOW, now=NOW)  # fmt: skip
    assert left.n_requests == 5


def test_bounds_are_narrowest_where_a_step_may_pass() -> None:
    assert planned_units(StepSpec(percent=1, min_requests=100)) == 396
    assert planned_units(StepSpec(percent=50, min_requests=100)) == 200
    assert planned_units(StepSpec(percent=100, min_requests=0)) == 100


def test_values_are_told_with_their_unit() -> None:
    agreed = Agreed(steps=DEFAULT_STEPS, guardrails=(GuardrailSpec(metric="itl", tolerance=0.25),),
                    alpha=0.05)  # fmt: skip
    rows = [request(ttft_ms=100.0, total_ms=200.0)] * 3
    [found] = judged(agreed, 0, baseline=Tally(), candidate=tallied(rows))
    assert line_of(found).candidate == "10 ms"
    assert log(10_000) * 1e6 == pytest.approx(said_by(rows[0])["itl"], abs=1)
