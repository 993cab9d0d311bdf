"""Where the interval of a guardrail is drawn, on 0 to 100."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.rollouts.types import GuardrailLine, StepLine, StepSpec

VALUES = st.floats(min_value=-1, max_value=1e6, allow_nan=False)


def line(low: float | None, high: float | None, **fields: Any) -> GuardrailLine:
    usual = {
        "metric": "ttft", "label": "", "tolerance": 0.25, "baseline": None, "candidate": None,
        "is_breached": False, "verdict": "", "tone": "busy",
    }  # fmt: skip
    return GuardrailLine(low=low, high=high, **{**usual, **fields})


@pytest.mark.parametrize(
    ("low", "high", "x", "width"),
    [
        (None, None, "0.0", "0"),
        (0.0, 0.25, "50.0", "16.7"),
        (-0.25, 0.25, "33.3", "33.3"),
        (0.25, 0.5, "66.7", "8.3"),
        (0.1, None, "58.3", "41.7"),
        (0.1, 0.1, "58.3", "3.0"),
        (0.1, float("inf"), "58.3", "38.7"),
    ],
)
def test_places(low: float | None, high: float | None, x: str, width: str) -> None:
    found = line(low, high)
    assert (found.interval_x, found.interval_width) == (x, width)


@given(low=VALUES, more=st.floats(min_value=0), tolerance=st.floats(0, 10))
def test_it_is_within_the_drawing_and_on_the_right_side(
    low: float, more: float, tolerance: float
) -> None:
    found = line(low, low + more, tolerance=tolerance)
    x, width = float(found.interval_x), float(found.interval_width)
    assert 0 <= x <= 97 and x + width <= 100.1
    if tolerance >= 0.001:
        assert (x >= 66.6) == (low >= tolerance * 0.99) or abs(low - tolerance) < 0.01 * tolerance


@pytest.mark.parametrize(
    ("metric", "tolerance", "said"),
    [("ttft", 0.25, "25 %"), ("error_rate", 0.01, "1 point"), ("empty_rate", 0.025, "2.5 points")],
)
def test_tolerances_in_words(metric: str, tolerance: float, said: str) -> None:
    assert line(0, 0, metric=metric, tolerance=tolerance).tolerance_said == said


@pytest.mark.parametrize(
    ("fields", "tone", "width"),
    [
        ({"is_past": True}, "good", "100"),
        ({"is_present": True, "n_candidate": 5}, "busy", "25.0"),
        ({"is_present": True, "n_candidate": 50}, "busy", "100.0"),
        ({}, None, "0.0"),
        ({"guardrails": (line(1, 2, is_breached=True),)}, "bad", "0.0"),
    ],
)
def test_a_step_as_it_is_drawn(fields: dict[str, Any], tone: str | None, width: str) -> None:
    rest = {"is_present": False, "is_past": False, "n_candidate": 0, "guardrails": ()}
    step = StepLine(
        index=0, spec=StepSpec(percent=10, min_requests=20), started_at=None, n_baseline=0,
        n_failed=0, **{**rest, **fields},
    )  # fmt: skip
    assert (step.tone, step.width) == (tone, width)
