"""Texts for spreadsheets are shown and never run."""

import pytest

from apps.core.wording import cell_text, duration_text


@pytest.mark.parametrize("mark", ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\0=", "  @"])
def test_what_may_be_a_formula_is_marked_as_text(mark: str) -> None:
    assert cell_text(f"{mark}cmd|' /C calc'!A0") == f"'{mark}cmd|' /C calc'!A0"


@pytest.mark.parametrize("text", ["", "Acme", "a=b", "m-1", "'=x"])
def test_other_texts_stay(text: str) -> None:
    assert cell_text(text) == text


@pytest.mark.parametrize(
    ("value_ms", "text"), [(None, "—"), (12.4, "12 ms"), (999.4, "999 ms"), (1_500.0, "1.5 s")]
)
def test_durations(value_ms: float | None, text: str) -> None:
    assert duration_text(value_ms) == text
