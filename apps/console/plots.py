"""Plots of a deployment's last hour, day or month, as paths for inline SVG. No queries."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import floor, log10
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from apps.engines.models import EngineSample

WIDTH: Final = 600
HEIGHT: Final = 120
# A sample may be late by a sweep of the agent; what is missing for longer is a gap.
_GAP_SPANS: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """span_s: of the samples that are drawn. marks: how times are written."""

    key: str
    label: str
    life: timedelta
    span_s: int
    marks: str


RANGES: Final = {
    each.key: each
    for each in (
        Range(key="hour", label="Hour", life=timedelta(hours=1), span_s=10, marks="%H:%M"),
        Range(key="day", label="Day", life=timedelta(days=1), span_s=60, marks="%H:%M"),
        Range(key="month", label="Month", life=timedelta(days=30), span_s=3600, marks="%d %b"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """path: of an SVG of WIDTH by HEIGHT. last: its newest value in words."""

    name: str
    tone: str
    path: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """top, middle: what the lines across say."""

    title: str
    top: str
    middle: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plots:
    range: Range
    marks: tuple[str, ...]
    plots: tuple[Plot, ...]
    is_empty: bool


Series = Sequence[tuple[datetime, float]]


def plots_of(samples: Iterable["EngineSample"], *, range_: Range, now: datetime) -> Plots:
    """Draw the engines of one deployment together. What they do adds up; of what their requests
    waited, the median is the mean of theirs by requests, and the slow end the worst."""
    at: defaultdict[datetime, list[EngineSample]] = defaultdict(list)
    for sample in samples:
        at[sample.at].append(sample)

    def summed(name: str) -> Series:
        return [(when, sum(getattr(each, name) for each in group)) for when, group in at.items()]

    def worst(name: str) -> Series:
        return _known((when, [getattr(each, name) for each in group]) for when, group in at.items())

    def median(name: str) -> Series:
        return [
            (when, sum(getattr(each, name) * each.n_requests for each in known) / n_all)
            for when, group in at.items()
            if (known := [each for each in group if getattr(each, name) is not None])
            and (n_all := sum(each.n_requests for each in known))
        ]

    memory = summed("rss_bytes")
    kv = [(when, 100 * max(each.kv_used for each in group)) for when, group in at.items()]
    draw = _Drawing(range_=range_, now=now)
    return Plots(
        range=range_,
        marks=draw.marks(),
        is_empty=not at,
        plots=(
            draw.plot(
                "Throughput, tokens a second",
                _count,
                ("generated", "good", summed("completion_tokens_per_s")),
                ("read", "busy", summed("prompt_tokens_per_s")),
            ),
            draw.plot(
                "Requests",
                _count,
                ("running", "good", summed("n_running")),
                ("waiting", "warn", summed("n_waiting")),
            ),
            draw.plot(
                "Time to first token",
                _ms,
                ("median", "good", median("ttft_ms")),
                ("95 %", "warn", worst("ttft_p95_ms")),
            ),
            draw.plot(
                "Time between tokens",
                _ms,
                ("median", "good", median("itl_ms")),
                ("95 %", "warn", worst("itl_p95_ms")),
            ),
            draw.plot("Memory", _size, ("processes", "busy", memory), top=_round_size(memory)),
            draw.plot("KV blocks in use", _percent, ("fullest replica", "busy", kv), top=100.0),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    range_: Range
    now: datetime

    def marks(self) -> tuple[str, ...]:
        """Say when, at the left, a half and the right."""
        begin = self.now - self.range_.life
        moments = (begin, begin + self.range_.life / 2, self.now)
        return tuple(each.strftime(self.range_.marks) for each in moments)

    def plot(
        self,
        title: str,
        say: Callable[[float], str],
        *series: tuple[str, str, Series],
        top: float | None = None,
    ) -> Plot:
        if top is None:
            top = ceiling(max((y for _, _, points in series for _, y in points), default=0.0))
        return Plot(
            title=title,
            top=say(top),
            middle=say(top / 2),
            lines=tuple(
                Line(
                    name=name,
                    tone=tone,
                    path=self._path(points, top=top),
                    last=say(points[-1][1]) if points else "-",
                )
                for name, tone, points in series
            ),
        )

    def _path(self, points: Series, *, top: float) -> str:
        """A point on its own is a dot: a line that goes nowhere, with round ends."""
        parts: list[str] = []
        before: datetime | None = None
        gap = timedelta(seconds=self.range_.span_s * _GAP_SPANS)
        begin = self.now - self.range_.life
        for when, value in points:
            x = WIDTH * ((when - begin) / self.range_.life)
            y = HEIGHT * (1 - min(value, top) / top)
            is_first = before is None or when - before > gap
            parts.append(f"M{x:.1f} {y:.1f}h0" if is_first else f"L{x:.1f} {y:.1f}")
            before = when
        return "".join(parts)


def ceiling(value: float) -> float:
    """Return the least of 1, 2 and 5 times a power of ten that is not below; 1 at least."""
    if value <= 1:
        return 1.0
    unit = 10.0 ** floor(log10(value))
    return next(step * unit for step in (1, 2, 5, 10) if step * unit >= value)


def _round_size(points: Series) -> float:
    return 2.0**20 * ceiling(max((n_bytes for _, n_bytes in points), default=0.0) / 2**20)


def _known(values: Iterable[tuple[datetime, list[float | None]]]) -> Series:
    """Leave out where nothing is known."""
    return [
        (when, max(known))
        for when, group in values
        if (known := [value for value in group if value is not None])
    ]


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _ms(value: float) -> str:
    return f"{value / 1000:,.1f} s" if value >= 1000 else f"{_count(value)} ms"


def _percent(value: float) -> str:
    return f"{value:.0f} %"


def _size(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value / 1024:,.0f} KiB"
