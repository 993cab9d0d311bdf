"""Figures of verifications as people read them."""

from collections.abc import Mapping

from apps.registry.comparing import FIGURES


def figure_texts(figures: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return label and value of the figures that are known, in their order."""
    return [
        (figure.label, figure.text(figures[name]))
        for name, figure in FIGURES.items()
        if name in figures
    ]


def figure_lines(figures: Mapping[str, float]) -> list[str]:
    return [f"{label:<28}{text}" for label, text in figure_texts(figures)]
