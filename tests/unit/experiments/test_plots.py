"""How results are drawn: where points and bands lie, and what the ends of a row stand for."""

from datetime import UTC, datetime, timedelta
from math import inf

import pytest

from apps.experiments.plots import (
    Band,
    ceiling,
    count_plot,
    effect_plot,
    percent,
    signed,
    whisker,
    whisker_reach,
)

T0 = datetime(2026, 5, 1, 8, 0, tzinfo=UTC)


def band(minutes: int, value: float | None, low: float | None, high: float | None) -> Band:
    return Band(at=T0 + timedelta(minutes=minutes), value=value, low=low, high=high)


def test_an_effect_lies_about_a_zero_in_the_middle() -> None:
    bands = [band(0, 0.1, -0.1, 0.2), band(60, 0.05, -0.05, 0.1)]
    plot = effect_plot("Cost", [("b", 1, "+5 %", bands)])
    assert (plot.top, plot.middle, plot.bottom) == ("+10 %", "0", "-10 %")
    assert plot.marks == ("08:00", "08:30", "09:00")
    (line,) = plot.series
    assert line.path == "M0.0 0.0h0L600.0 40.0"
    # There along the upper bounds, of which the first is above the plot; back along the lower.
    assert line.band == "M0.0 0.0L600.0 0.0L600.0 120.0L0.0 160.0Z"


def test_wide_beginnings_do_not_make_a_plot_of_nothing() -> None:
    bands = [band(0, 0.9, -inf, inf), band(30, 0.3, -0.6, 2.0), band(60, 0.02, -0.01, 0.04)]
    plot = effect_plot("Cost", [("b", 1, "+2 %", bands)])
    assert plot.top == "+20 %"  # four times the reach of the last, rounded up


def test_nothing_known_is_an_empty_plot() -> None:
    assert effect_plot("Cost", [("b", 1, "-", [band(0, None, None, None)])]).is_empty
    assert count_plot("Subjects", [("a", 0, [])]).is_empty


def test_a_single_look_is_a_dot() -> None:
    plot = effect_plot("Cost", [("b", 1, "+2 %", [band(0, 0.02, -0.1, 0.1)])])
    assert plot.series[0].path == "M0.0 64.0h0"
    assert plot.series[0].band == ""


def test_counts_grow_from_the_bottom() -> None:
    plot = count_plot("Subjects", [("a", 0, [(T0, 0.0), (T0 + timedelta(days=6), 80.0)])])
    assert (plot.top, plot.middle, plot.bottom) == ("100", "50", "")
    assert plot.marks == ("01 May", "04 May", "07 May")
    assert plot.series[0].path == "M0.0 160.0h0L600.0 32.0"
    assert plot.series[0].last == "80"


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.0, -0.2, 0.2, ("0.0", "100.0", "50.0")),
        (0.1, 0.0, 0.15, ("50.0", "37.5", "75.0")),
        (0.1, -inf, inf, ("0.0", "100.0", "75.0")),  # no bound: to the ends
        (0.9, 0.8, 1.0, ("100.0", "0.8", "100.0")),  # beyond the end, and still to be seen
        (None, None, None, ("0", "0", None)),
    ],
)
def test_a_row_draws_its_interval_beside_zero(
    value: float | None,
    low: float | None,
    high: float | None,
    expected: tuple[str, str, str | None],
) -> None:
    drawn = whisker(value=value, low=low, high=high, reach=0.2)
    assert (drawn.begin, drawn.width, drawn.point) == expected


def test_the_reach_of_rows() -> None:
    assert whisker_reach([(-0.03, 0.04), (None, None)]) == 0.05
    assert whisker_reach([(-inf, 30.0)]) == 1.0
    assert whisker_reach([]) == pytest.approx(0.1)


def test_words_of_numbers() -> None:
    assert [ceiling(x) for x in (0.0, 0.011, 0.2, 0.21, 3.0)] == [0.01, 0.02, 0.2, 0.5, 5.0]
    assert [percent(x) for x in (0.0, 0.0123, 0.5, 12.0)] == ["0 %", "1.2 %", "50 %", "1,200 %"]
    assert [signed(x) for x in (0.05, -0.032, 0.0, inf, None)] == [
        "+5 %", "-3.2 %", "0 %", "no bound", "-",
    ]  # fmt: skip
