"""Curves and levels of the simulations as SVG pictures."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from benchmarks.plot import COLOURS

Points = Sequence[tuple[float, float]]
LEFT: Final = 440
WIDTH: Final = 460
ROW: Final = 22


def curves(*, title: str, x_label: str, lines: Mapping[str, Points], mark: float) -> str:
    """Draw shares between 0 and 1 (as per cent) over the looks, with a level to keep below."""
    left, top, width, height = 60.0, 46.0, 560.0, 260.0
    last = max(x for points in lines.values() for x, _ in points)
    most = max(mark, *(y for points in lines.values() for _, y in points)) * 1.08
    shapes = [_text(20, 24, title, anchor="start", size=15)]

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / last * width, top + height - y / most * height

    step = 0.1 if most > 0.3 else 0.02 if most > 0.1 else 0.01
    for n in range(int(most / step) + 1):
        _, y = at(0, n * step)
        shapes.append(_line(left, y, left + width, y, "#d0d5da"))
        shapes.append(_text(left - 6, y + 4, f"{n * step * 100:.0f} %", anchor="end", size=10))
    for n in range(6):
        x, _ = at(last * n / 5, 0)
        shapes.append(_text(x, top + height + 16, f"{last * n / 5:,.0f}", size=10))
    shapes.append(_text(left + width / 2, top + height + 34, x_label, size=11))
    _, y = at(0, mark)
    shapes.append(_line(left, y, left + width, y, "#c44536", "5 4"))
    for index, (name, points) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (at(*point) for point in points))
        shapes.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        y = top + height + 52 + index * 16
        shapes.append(f'<rect x="{left}" y="{y - 6}" width="14" height="4" fill="{colour}"/>')
        shapes.append(_text(left + 20, y, name, anchor="start", size=10))
    return _picture(shapes, width=660, height=int(top + height + 56 + 16 * len(lines)))


def levels(*, title: str, values: Mapping[str, float], low: float, high: float, mark: float) -> str:
    """Draw one dot a row on a scale from low to high (shares), with a level to compare with."""
    bottom = 44 + ROW * len(values)
    shapes = [_text(20, 24, title, anchor="start", size=15)]

    def at(value: float) -> float:
        return LEFT + (min(max(value, low), high) - low) / (high - low) * WIDTH

    for n in range(6):
        value = low + (high - low) * n / 5
        shapes.append(_line(at(value), 40, at(value), bottom, "#d0d5da"))
        shapes.append(_text(at(value), bottom + 16, f"{value * 100:.1f} %", size=10))
    shapes.append(_line(at(mark), 40, at(mark), bottom, "#c44536", "5 4"))
    for index, (name, value) in enumerate(values.items()):
        y = 56 + ROW * index
        shapes.append(_text(LEFT - 12, y + 4, name, anchor="end", size=11))
        shapes.append(f'<circle cx="{at(value):.1f}" cy="{y}" r="5" fill="{COLOURS[3]}"/>')
        shapes.append(_text(at(value) + 9, y + 4, f"{value * 100:.1f}", anchor="start", size=10))
    return _picture(shapes, width=LEFT + WIDTH + 60, height=bottom + 30)


def _picture(shapes: Sequence[str], *, width: int, height: int) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *shapes, "</svg>\n"])


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
