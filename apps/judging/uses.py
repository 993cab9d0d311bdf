"""Who still names a judge. Rooms above this one that speak of judges by name say so at their start;
this one knows none of them."""

from collections.abc import Callable
from typing import Final

Uses = Callable[[str], list[str]]

_uses: Final[dict[str, Uses]] = {}


def judge_uses_register(room: str, uses: Uses) -> None:
    """Have a room asked before a judge goes or is called something else. uses: of a judge's name,
    what is not over and needs it."""
    _uses[room] = uses


def judge_uses(name: str) -> list[str]:
    return [each for uses in _uses.values() for each in uses(name)]
