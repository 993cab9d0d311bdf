"""How pages and files say times and texts."""

from typing import Final

# What a spreadsheet takes for the beginning of a formula.
_FORMULA_MARKS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


def duration_text(value_ms: float | None) -> str:
    if value_ms is None:
        return "—"
    return f"{value_ms:.0f} ms" if value_ms < 1000 else f"{value_ms / 1000:.1f} s"


def cell_text(text: str) -> str:
    """Return a text that a spreadsheet shows and never runs: names are other people's."""
    return f"'{text}" if text.lstrip(" \0").startswith(_FORMULA_MARKS) else text
