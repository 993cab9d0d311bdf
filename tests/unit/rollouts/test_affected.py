"""How long the steps of a rollout take at a rate of requests."""

import pytest

from apps.rollouts.affected import minutes_said, steps_forecast, together_said
from apps.rollouts.types import StepSpec

STEPS = (
    StepSpec(percent=1, min_requests=100, min_minutes=5),
    StepSpec(percent=50, min_requests=100, min_minutes=5),
    StepSpec(percent=100, min_requests=0, min_minutes=0),
)


def test_a_step_waits_for_its_requests_or_its_time() -> None:
    """6,000 an hour, of which the old deployment has a half: 30 at 1 %, 1,500 at 50 %."""
    first, second, last = steps_forecast(STEPS, per_hour=6000, share=0.5)
    assert (first.per_hour, second.per_hour, last.per_hour) == (30, 1500, 3000)
    assert (first.minutes, second.minutes, last.minutes) == (200, 5, 0)
    assert (first.said, second.said, last.said) == ("3 h", "5 min", "at once")
    said = together_said((first, second, last))
    assert said == "At this rate it is at 100 % after 3 h."


def test_without_requests_a_step_that_wants_some_never_ends() -> None:
    forecasts = steps_forecast(STEPS, per_hour=0, share=1)
    assert [each.minutes for each in forecasts] == [None, None, 0]
    assert together_said(forecasts) == "Without requests it does not get past its first step."
    assert forecasts[0].said == "never, without requests"


@pytest.mark.parametrize(
    ("rate", "said"), [(0, "0"), (0.25, "0.2"), (9.96, "10.0"), (10, "10"), (12345.6, "12,346")]
)
def test_rates_in_words(rate: float, said: str) -> None:
    (only,) = steps_forecast(STEPS[2:], per_hour=rate, share=1)
    assert only.per_hour_said == said


@pytest.mark.parametrize(
    ("minutes", "said"),
    [(0, "at once"), (0.5, "30 s"), (1, "1 min"), (119, "119 min"), (120, "2 h"), (2880, "2 days")],
)
def test_times_in_words(minutes: float, said: str) -> None:
    assert minutes_said(minutes) == said
