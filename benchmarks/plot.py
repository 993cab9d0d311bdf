"""Bars in groups as an SVG picture: enough for a benchmark's result, without a plotting library."""

from collections.abc import Mapping
from html import escape
from typing import Final

COLOURS: Final = (
    "#0b6e4f", "#6bbf59", "#c44536", "#2c5d8f", "#8ab6d6", "#8d99ae", "#e0a030", "#7b4b94",
)  # fmt: skip
BAR, GAP, HEIGHT, ROW = 32, 30, 240, 18


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
    width = max(x, GAP + 9 * len(title))
    head = _text(GAP, 22, escape(title), anchor="start", size=15)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
            f'height="{base + 30}" font-family="sans-serif">',
            '<rect width="100%" height="100%" fill="white"/>',
            head,
            *legend,
            *shapes,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{text}</text>'
