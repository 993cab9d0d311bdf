"""Characters of several tokens and stop strings over several, through the running server: a stream
says what the whole answer says, whole characters only, wherever tokens end."""

import json
from typing import Any

import openai
import pytest

from tests.e2e.clients.asking import Asker, ends_of, texts_of

pytestmark = pytest.mark.e2e

TEXTS = (
    "naïve café, Ångström",
    "e\u0301 o\u0308\u0323 n\u0303, combined",  # combining marks
    "東京タワー、漢字かな交じり文",
    "한국어 조선말 ㄱㄴㄷ",
    "ไทย ภาษา สวัสดี",
    "שלום עולם مرحبا بالعالم",
    "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇯🇵",  # tone, families, flags
    "a\u200bb\u200dc\ufeffd",  # of no width
    "𒀀𒁀 🀄 𝄞",  # beyond the basic plane
)


def held(text: str) -> dict[str, Any]:
    """Make the model say ``text``, as a JSON string."""
    schema = {"name": "s", "schema": {"const": text}}
    return {"response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": 150}


def said(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_is_the_whole(text: str, asker: Asker) -> None:
    chunks = asker.chunks("Speak.", **held(text), n=2, seed=1)
    assert texts_of(chunks) == {0: said(text), 1: said(text)}
    assert ends_of(chunks) == {0: "stop", 1: "stop"}
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "\ufffd" not in "".join(pieces)
    assert asker.text("Speak.", **held(text)) == said(text)


@pytest.mark.parametrize("text", TEXTS)
def test_an_echo_is_the_prompt(text: str, client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "prompt": text, "max_tokens": 1, "echo": True}
    whole = client.completions.create(**asked, temperature=0)
    assert whole.choices[0].text.startswith(text)
    streamed = client.completions.create(**asked, temperature=0, stream=True)
    joined = "".join(choice.text for chunk in streamed for choice in chunk.choices)
    assert joined == whole.choices[0].text


@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[2], TEXTS[6]])
def test_a_stop_string_over_each_end_of_a_token(text: str, asker: Asker) -> None:
    """Each starts somewhere else in a token, ends somewhere else, and most lie over several."""
    whole = said(text)
    for start in range(1, len(whole) - 1, 2):
        stop = whole[start : start + 3]
        wanted = whole[: whole.index(stop)]
        chunks = asker.chunks("Speak.", **held(text), stop=stop)
        assert texts_of(chunks).get(0, "") == wanted
        assert ends_of(chunks) == {0: "stop"}
        assert asker.text("Speak.", **held(text), stop=[stop, "never there"]) == wanted
