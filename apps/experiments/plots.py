"""Plots of an experiment's results, as paths for inline SVG. No queries."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import floor, isfinite, log10
from typing import Final

WIDTH: Final = 600
HEIGHT: Final = 160
# The first intervals are very wide: the plot shows so many times the reach of the last ones.
_REACH: Final = 4.0
_ROW_WIDTH: Final = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """What was known at one moment. value, low, high: relative effects, 0.05 is five percent; low
    and high may be infinite; None where nothing could be said."""

    at: datetime
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One variant in a plot. arm: its number, for its colour. band: the area of its interval, empty
    where there is none. last: its newest value in words."""

    name: str
    arm: int
    path: str
    band: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """top, middle, bottom: what the lines across say. marks: when, from left to right."""

    title: str
    top: str
    middle: str
    bottom: str
    marks: tuple[str, ...]
    series: tuple[Drawn, ...]

    @property
    def is_empty(self) -> bool:
        return not any(each.path for each in self.series)


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """An interval as a row draws it, in an SVG of 100 by 12. begin, width: of its bar. point: its
    middle, None where nothing can be said. Zero is at 50."""

    begin: str
    width: str
    point: str | None


def effect_plot(title: str, lines: Sequence[tuple[str, int, str, Sequence[Band]]]) -> Plot:
    """Draw effects with their intervals over time. lines: of each variant its name, its number, its
    newest value in words, and what was known."""
    known = [each for *_, bands in lines for each in bands if each.value is not None]
    top = ceiling(_reach([bands for *_, bands in lines]))
    begin, end = _ends(each.at for each in known)
    frame = _Frame(begin=begin, end=end, low=-top, high=top)
    return Plot(
        title=title,
        top=f"+{percent(top)}",
        middle="0",
        bottom=f"-{percent(top)}",
        marks=frame.marks(),
        series=tuple(
            Drawn(
                name=name,
                arm=arm,
                path=frame.line([(b.at, b.value) for b in bands if b.value is not None]),
                band=frame.area(bands),
                last=last,
            )
            for name, arm, last, bands in lines
        ),
    )


def count_plot(
    title: str, lines: Sequence[tuple[str, int, Sequence[tuple[datetime, float]]]]
) -> Plot:
    """Draw numbers that only grow, over time. lines: of each variant its name, its number, and how
    many there were."""
    points = [each for *_, series in lines for each in series]
    top = ceiling(max((y for _, y in points), default=0.0), least=1.0)
    begin, end = _ends(at for at, _ in points)
    frame = _Frame(begin=begin, end=end, low=0.0, high=top)
    return Plot(
        title=title,
        top=f"{top:,.0f}",
        middle=f"{top / 2:,.0f}" if top >= 2 else "",
        bottom="",
        marks=frame.marks(),
        series=tuple(
            Drawn(
                name=name,
                arm=arm,
                path=frame.line(series),
                band="",
                last=f"{series[-1][1]:,.0f}" if series else "-",
            )
            for name, arm, series in lines
        ),
    )


def whisker(*, value: float | None, low: float | None, high: float | None, reach: float) -> Whisker:
    """Draw an interval beside zero. reach: what the row's ends stand for, the same in all rows that
    are compared."""
    if value is None or low is None or high is None:
        return Whisker(begin="0", width="0", point=None)
    begin, end, point = (_across(each, reach=reach) for each in (low, high, value))
    return Whisker(begin=f"{begin:.1f}", width=f"{max(end - begin, 0.8):.1f}", point=f"{point:.1f}")


def whisker_reach(bounds: Iterable[tuple[float | None, float | None]]) -> float:
    """Return what the ends of rows are to stand for: the widest of the intervals, but no more than
    100 percent, so that one of which little is known does not make points of the others."""
    ends = [abs(each) for pair in bounds for each in pair if each is not None and isfinite(each)]
    return ceiling(min(max(ends, default=0.1), 1.0))


def ceiling(value: float, *, least: float = 0.01) -> float:
    """Return the least of 1, 2 and 5 times a power of ten that is not below; ``least`` at least."""
    if value <= least:
        return least
    unit = 10.0 ** floor(log10(value))
    return next(step * unit for step in (1, 2, 5, 10) if step * unit >= value * (1 - 1e-9))


def percent(value: float) -> str:
    """Say a part as percent, with as many digits as tell: 0.05 is "5 %"."""
    size = abs(100 * value)
    digits = 0 if size >= 10 else 1 if size >= 1 else 2
    text = f"{size:,.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def signed(value: float | None) -> str:
    """Say an effect: "+5 %", "-3.2 %"; of one without bound, that."""
    if value is None:
        return "-"
    if not isfinite(value):
        return "no bound"
    text = percent(value)
    if text == "0 %":
        return text
    return f"{'+' if value > 0 else '-'}{text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """What the sides of a plot stand for."""

    begin: datetime
    end: datetime
    low: float
    high: float

    def marks(self) -> tuple[str, ...]:
        life = self.end - self.begin
        form = "%H:%M" if life <= timedelta(days=1) else "%d %b"
        if timedelta(days=1) < life < timedelta(days=4):
            form = "%d %b %H:%M"
        return tuple(each.strftime(form) for each in (self.begin, self.begin + life / 2, self.end))

    def at(self, when: datetime, value: float) -> str:
        x = WIDTH * ((when - self.begin) / (self.end - self.begin))
        bounded = min(max(value, self.low), self.high)
        y = HEIGHT * (self.high - bounded) / (self.high - self.low)
        return f"{x:.1f} {y:.1f}"

    def line(self, points: Sequence[tuple[datetime, float]]) -> str:
        """A point on its own is a dot: a line that goes nowhere, with round ends."""
        if not points:
            return ""
        first, *rest = (self.at(when, value) for when, value in points)
        return f"M{first}h0" + "".join(f"L{each}" for each in rest)

    def area(self, bands: Sequence[Band]) -> str:
        """Return the outline of what lies between the bounds, there and back."""
        known = [(b.at, b.low, b.high) for b in bands if b.low is not None and b.high is not None]
        if len(known) < 2:
            return ""
        there = [self.at(when, high) for when, _, high in known]
        back = [self.at(when, low) for when, low, _ in reversed(known)]
        return f"M{'L'.join([*there, *back])}Z"


def _reach(lines: Sequence[Sequence[Band]]) -> float:
    """Return how far from zero there is something to see."""
    last = [bands[-1] for bands in lines if bands]
    ends = [
        abs(each)
        for band in last
        for each in (band.low, band.high, band.value)
        if each is not None and isfinite(each)
    ]
    values = [abs(b.value) for bands in lines for b in bands if b.value is not None]
    late = max(ends, default=0.0)
    return max(late, min(max(values, default=0.0), _REACH * late))


def _ends(moments: Iterable[datetime]) -> tuple[datetime, datetime]:
    found = sorted(moments)
    if not found:
        begin = datetime.min
        return begin, begin + timedelta(hours=1)
    begin, end = found[0], found[-1]
    return begin, max(end, begin + timedelta(minutes=1))


def _across(value: float, *, reach: float) -> float:
    bounded = (
        min(max(value, -reach), reach) if isfinite(value) else reach * (1 if value > 0 else -1)
    )
    return _ROW_WIDTH * (bounded + reach) / (2 * reach)
