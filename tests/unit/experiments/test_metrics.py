"""What a request and an event add to each metric: whole numbers, by hand."""

from dataclasses import replace
from datetime import UTC, datetime
from math import log
from typing import Any

import pytest

from apps.core.ids import attempt_id, is_first_attempt, new_id
from apps.experiments.metrics import BUILT_IN, UnknownMetric, metric_of, metrics_by_key
from apps.metering.types import ObservedRequest, Outcome

ANSWER = ObservedRequest(
    request_id="chatcmpl-" + "0" * 32, arm="", tenant_id=1, api_token_id=None, end_user="ann",
    door="rest", route_name="chat", deployment_id=1, model_version_id=1, attempt=1,
    is_fallback=False, outcome=Outcome.COMPLETED, finish_reason="stop", n_prompt_tokens=30,
    n_completion_tokens=11, cost_micro=70, ttft_ms=100.0, total_ms=600.0,
    created_at=datetime(2026, 11, 25, tzinfo=UTC),
)  # fmt: skip
FAILED = replace(
    ANSWER, outcome=Outcome.FAILED, finish_reason="", n_completion_tokens=3, cost_micro=20
)
ABORTED = replace(ANSWER, outcome=Outcome.ABORTED, finish_reason="")
MOVED = replace(ANSWER, request_id=ANSWER.request_id + "-2", attempt=2)


def added(request: ObservedRequest) -> dict[str, Any]:
    return {
        key: metric.of_request(request)
        for key, metric in BUILT_IN.items()
        if metric.of_request is not None
    }


def us(time_ms: float) -> tuple[int, int]:
    return round(1e6 * log(time_ms * 1000)), 1


def test_an_answer() -> None:
    assert added(ANSWER) == {
        "requests": (1, 0),
        "error_rate": (0, 1),
        "ttft": us(100),
        "itl": us(50),
        "latency": us(600),
        "completion_tokens": (11, 1),
        "cost": (70, 1),
        "empty_rate": (0, 1),
    }


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.INTERRUPTED])
def test_a_failure_is_an_error_that_costs_and_no_answer(outcome: Outcome) -> None:
    found = added(replace(FAILED, outcome=outcome))
    assert {key: pair for key, pair in found.items() if pair is not None} == {
        "requests": (1, 0),
        "error_rate": (1, 1),
        "cost": (20, 1),
    }


def test_what_was_aborted_is_a_request_only() -> None:
    found = added(ABORTED)
    assert {key: pair for key, pair in found.items() if pair is not None} == {"requests": (1, 0)}


def test_a_second_try_is_no_second_request() -> None:
    found = added(MOVED)
    assert (found["requests"], found["error_rate"], found["cost"]) == ((0, 0), None, (70, 0))
    assert found["completion_tokens"] == (11, 1)


@pytest.mark.parametrize(
    ("changes", "empty"),
    [
        ({"n_completion_tokens": 0}, 1),
        ({"n_completion_tokens": 1}, 1),
        ({"n_completion_tokens": 2}, 0),
        ({"finish_reason": "content_filter"}, 1),
    ],
)
def test_empty_answers(changes: dict[str, Any], empty: int) -> None:
    assert added(replace(ANSWER, **changes))["empty_rate"] == (empty, 1)


def test_times_that_nobody_took_are_none() -> None:
    found = added(replace(ANSWER, ttft_ms=None, n_completion_tokens=1))
    assert (found["ttft"], found["itl"]) == (None, None)
    assert added(replace(ANSWER, ttft_ms=0.0))["ttft"] == (0, 1)  # at least a microsecond


def test_events() -> None:
    thumbs, mean, total = (metric_of(key) for key in ("thumbs_up_rate", "event:x", "sum:y"))
    assert (thumbs.event_name, mean.event_name, total.event_name) == ("feedback", "x", "y")
    assert [thumbs.value_of_event(value) for value in (0.0, 1.0)] == [(0, 1), (1, 1)]
    assert mean.value_of_event(-0.1234567) == (-123457, 1)
    assert total.value_of_event(2.5) == (2_500_000, 0)
    assert total.is_per_subject


def test_a_score_is_the_mean_over_answers_that_were_scored() -> None:
    score = metric_of("judge:kind")
    assert (score.label, score.event_name, score.kind) == ("Score by kind", "judge:kind", "mean")
    assert (score.better, score.is_per_subject, score.of_request) == ("higher", False, None)
    assert score.value_of_event(4.0) == (4_000_000, 1)
    assert score.says == "Mean over the answers that the judge kind has scored by its rubric."


@pytest.mark.parametrize(
    "key",
    [
        *("", "speed", "event:", "sum:", "event:feedback", "event:" + "x" * 65),
        *("judge:", "sum:judge:kind", "event:judge:kind"),
    ],
)
def test_others_are_unknown(key: str) -> None:
    with pytest.raises(UnknownMetric):
        metric_of(key)


def test_requests_are_always_counted() -> None:
    assert list(metrics_by_key(["latency", "latency"])) == ["requests", "latency"]


def test_the_first_row_of_a_request_by_its_id() -> None:
    for _ in range(1000):
        base = new_id("chatcmpl")
        assert [is_first_attempt(attempt_id(base, n)) for n in (1, 2, 3, 4)] == [
            True, False, False, False,
        ]  # fmt: skip
