"""How samples become lines."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.console.plots import HEIGHT, RANGES, WIDTH, Plots, ceiling, plots_of
from apps.engines.models import EngineSample
from apps.engines.sampling import quantile

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = RANGES["hour"]


def sample(ago_s: float, name: str = "m-0", **fields: Any) -> EngineSample:
    defaults: dict[str, Any] = {
        "n_running": 1.0, "n_waiting": 0.0, "prompt_tokens_per_s": 0.0,
        "completion_tokens_per_s": 0.0, "rss_bytes": 2**20, "kv_used": 0.5, "n_requests": 0,
    }  # fmt: skip
    return EngineSample(engine_name=name, at=NOW - timedelta(seconds=ago_s), **(defaults | fields))


def drawn(*samples: EngineSample) -> Plots:
    return plots_of(samples, range_=HOUR, now=NOW)


def line(plots: Plots, plot: int, number: int = 0) -> tuple[str, str]:
    found = plots.plots[plot].lines[number]
    return found.path, found.last


def test_replicas_add_up_and_a_gap_breaks_the_line() -> None:
    plots = drawn(
        sample(1800, completion_tokens_per_s=30.0),
        sample(1800, "m-1", completion_tokens_per_s=20.0),
        sample(1790, completion_tokens_per_s=100.0),
        sample(0, completion_tokens_per_s=25.0),
    )
    path = "M300.0 60.0h0L301.7 0.0M600.0 90.0h0"
    assert line(plots, 0) == (path, "25")
    assert (plots.plots[0].top, plots.plots[0].middle) == ("100", "50")
    assert plots.marks == ("11:00", "11:30", "12:00")
    assert not plots.is_empty


def test_latencies_are_weighed_by_requests_and_the_worst_counts() -> None:
    plots = drawn(
        sample(10, n_requests=3, ttft_ms=100.0, ttft_p95_ms=300.0),
        sample(10, "m-1", n_requests=1, ttft_ms=500.0, ttft_p95_ms=1500.0),
        sample(0),
    )
    assert line(plots, 2, 0)[1] == "200 ms"
    assert line(plots, 2, 1)[1] == "1.5 s"
    assert line(plots, 3) == ("", "-")
    assert line(plots, 4)[1] == "1.0 MiB"
    assert line(plots, 5) == ("M598.3 60.0h0L600.0 60.0", "50 %")


def test_nothing_is_drawn_of_nothing() -> None:
    plots = drawn()
    assert plots.is_empty
    assert {each.path for plot in plots.plots for each in plot.lines} == {""}


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 1), (1, 1), (1.1, 2), (3, 5), (5, 5), (7, 10), (1001, 2000)]
)
def test_a_scale_ends_at_a_round_number(value: float, expected: float) -> None:
    assert ceiling(value) == expected


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=50))
def test_no_line_leaves_its_plot(values: list[float]) -> None:
    plots = drawn(*(sample(3600 - 10 * n, completion_tokens_per_s=v) for n, v in enumerate(values)))
    path = line(plots, 0)[0].replace("h0", "")
    for point in path.replace("M", "L").split("L")[1:]:
        x, y = map(float, point.split())
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT


@given(st.lists(st.floats(0, 1e9), min_size=1), st.sampled_from([0.5, 0.95]))
def test_a_quantile_is_exceeded_by_no_more_than_its_part(values: list[float], part: float) -> None:
    found = quantile(values, part)
    assert found in values
    assert sum(value <= found for value in values) >= part * len(values) - 1e-9
    assert sum(value < found for value in values) < part * len(values) + 1e-9
