"""Bars in groups, and lines over time, as SVG pictures: enough for a benchmark's result, without a
plotting library."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

COLOURS: Final = (
    "#0b6e4f", "#6bbf59", "#c44536", "#2c5d8f", "#8ab6d6", "#8d99ae", "#e0a030", "#7b4b94",
)  # fmt: skip
BAR, GAP, HEIGHT, ROW = 32, 30, 240, 18
WIDTH, PANEL, LEFT, BETWEEN = 760, 130, 60, 62
N_TICKS = 8

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Lines by name, of (seconds, value). is_stepped: a value holds until the next. mark: a level
    to compare with, after what it is. digits: of the numbers at the axis."""

    label: str
    lines: Mapping[str, Points]
    is_stepped: bool = False
    mark: tuple[str, float] | None = None
    digits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A span of time that has a name, shaded in all panels."""

    label: str
    begin_s: float
    end_s: float


def timeline(*, title: str, panels: Sequence[Panel], phases: Sequence[Phase] = ()) -> str:
    """Draw panels below each other over the same seconds, from zero to the last point of any."""
    last_s = max(x for panel in panels for points in panel.lines.values() for x, _ in points)
    scale = (WIDTH - LEFT - GAP) / last_s
    top, bottom = 104.0, 104.0 + len(panels) * (PANEL + BETWEEN) - BETWEEN
    shapes = []
    for n, phase in enumerate(phases):
        x = LEFT + phase.begin_s * scale
        width = (phase.end_s - phase.begin_s) * scale
        fill = "#f2f4f6" if n % 2 else "#e4ebf2"
        shapes.append(
            f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{bottom - top}" '
            f'fill="{fill}"/>'
        )
        # By turns a row lower, so that the name of a short phase does not run into the next.
        y = 46 + ROW * (n % 2)
        shapes.append(_text(x + 2, y, escape(phase.label), anchor="start", size=11))
    for panel in panels:
        shapes += _panel(panel, top=top, scale=scale)
        top += PANEL + BETWEEN
    step_s = _round_step(last_s / N_TICKS)
    for n in range(int(last_s / step_s) + 1):
        at_s = n * step_s
        shapes.append(_text(LEFT + at_s * scale, bottom + 16, f"{at_s:g} s", size=10))
    return _picture(
        [_text(GAP, 22, escape(title), anchor="start", size=15), *shapes],
        width=max(WIDTH, GAP + 9 * len(title)),
        height=int(bottom) + 30,
    )


def _panel(panel: Panel, *, top: float, scale: float) -> list[str]:
    base = top + PANEL
    highest = max(y for points in panel.lines.values() for _, y in points)
    if panel.mark is not None:
        highest = max(highest, panel.mark[1])
    unit = (PANEL - 10) / (highest or 1)
    step = _round_step(highest / 4 or 1)
    shapes = [_text(LEFT, top - 20, escape(panel.label), anchor="start", size=12)]
    for n in range(int(highest / step + 1e-9) + 1):
        y = base - n * step * unit
        shapes.append(
            f'<line x1="{LEFT}" x2="{WIDTH - GAP}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d0d5da"/>'
        )
        shapes.append(_text(LEFT - 6, y + 4, f"{n * step:.{panel.digits}f}", anchor="end", size=10))
    x = float(LEFT)
    for colour, (name, points) in zip(COLOURS, panel.lines.items(), strict=False):
        path = _path(points, is_stepped=panel.is_stepped, scale=scale, unit=unit, base=base)
        shapes.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8">'
            f"<title>{escape(name)}</title></path>"
        )
        shapes.append(f'<rect x="{x}" y="{top - 14:.1f}" width="10" height="4" fill="{colour}"/>')
        shapes.append(_text(x + 14, top - 8, escape(name), anchor="start", size=10))
        x += 30 + 6 * len(name)
    if panel.mark is not None:
        name, level = panel.mark
        y = base - level * unit
        shapes.append(
            f'<line x1="{LEFT}" x2="{WIDTH - GAP}" y1="{y:.1f}" y2="{y:.1f}" stroke="#c44536" '
            'stroke-dasharray="5 4"/>'
        )
        shapes.append(_text(WIDTH - GAP, y - 4, escape(name), anchor="end", size=10))
    return shapes


def _path(points: Points, *, is_stepped: bool, scale: float, unit: float, base: float) -> str:
    words: list[str] = []
    for x, y in points:
        at = (LEFT + x * scale, base - y * unit)
        if not words:
            words.append(f"M{at[0]:.1f} {at[1]:.1f}")
        elif is_stepped:
            words.append(f"H{at[0]:.1f}V{at[1]:.1f}")
        else:
            words.append(f"L{at[0]:.1f} {at[1]:.1f}")
    return "".join(words)


def _round_step(least: float) -> float:
    """Return the least of 1, 2 and 5 times a power of ten that is at least so much."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))


def bars(*, title: str, groups: Mapping[str, Mapping[str, float]], digits: int = 0) -> str:
    """Draw each group's values by name on a scale of its own, so that small groups stay legible.

    groups: from a group's label to its values; a name has the same colour in every group.
    """
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    shapes: list[str] = []
    base = 60 + ROW * len(names) + HEIGHT
    x = GAP
    for label, values in groups.items():
        scale = HEIGHT / max(values.values())
        middle = x + BAR * len(values) / 2
        shapes.append(_text(middle, base + 20, escape(label), anchor="middle"))
        for name, value in values.items():
            height = value * scale
            top = base - height
            shapes.append(
                f'<rect x="{x}" y="{top:.1f}" width="{BAR - 4}" height="{height:.1f}" '
                f'fill="{colours[name]}"><title>{escape(name)}</title></rect>'
            )
            shapes.append(_text(x + BAR / 2 - 2, top - 4, f"{value:.{digits}f}", size=9))
            x += BAR
        x += GAP
    legend = [
        f'<rect x="{GAP}" y="{32 + ROW * i}" width="11" height="11" fill="{colours[name]}"/>'
        + _text(GAP + 18, 42 + ROW * i, escape(name), anchor="start")
        for i, name in enumerate(names)
    ]
    head = _text(GAP, 22, escape(title), anchor="start", size=15)
    width = max(x, GAP + 9 * len(title))
    return _picture([head, *legend, *shapes], width=width, height=base + 30)


def _picture(shapes: Sequence[str], *, width: int, height: int) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
            f'height="{height}" font-family="sans-serif">',
            '<rect width="100%" height="100%" fill="white"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{text}</text>'
