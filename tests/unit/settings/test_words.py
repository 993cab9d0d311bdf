"""A setting that is a list of known words."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from config.settings import env


def read() -> list[str]:
    return env.words("STAGES", default=("draft", "approved"), known=("draft", "approved"))


def test_words_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STAGES", raising=False)
    assert read() == ["draft", "approved"]
    monkeypatch.setenv("STAGES", " approved ,")
    assert read() == ["approved"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("approved,retired", "STAGES has 'retired'"), ("", "STAGES is empty"), (",", "is empty")],
)
def test_what_is_no_list_of_them_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setenv("STAGES", text)
    with pytest.raises(ImproperlyConfigured, match=f"{said}.*it takes draft, approved"):
        read()
