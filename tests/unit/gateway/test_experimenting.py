"""What experiments do to a request: no database here."""

from typing import Any

import pytest

from apps.engines.client import ChatMessage, ChatPrompt, SamplingParams, TextPrompt, ToolCall
from apps.gateway.experimenting import templated
from apps.gateway.shaping import shaping
from apps.gateway.types import ChatRequest, CompletionRequest


def chat(*messages: ChatMessage, **fields: Any) -> ChatRequest:
    return ChatRequest(
        model="chat",
        prompt=ChatPrompt(messages=messages),
        sampling=SamplingParams(),
        max_tokens=8,
        **fields,
    )


USER = ChatMessage(role="user", content="Hello")


def system(text: str) -> ChatMessage:
    return ChatMessage(role="system", content=text)


@pytest.mark.parametrize(
    ("own", "template", "expected"),
    [
        ((), "Be short.", "Be short."),
        ((), "Be short. {system}", "Be short."),
        (("Be kind.",), "Be short. {system}", "Be short. Be kind."),
        (("Be kind.",), "Be short.", "Be short."),
        (("Be kind.", "Be brave."), "{system}\nBe short.", "Be kind.\n\nBe brave.\nBe short."),
        (("{system}",), "<{system}>", "<{system}>"),
        (("a{b}",), "{b} {system} {}", "{b} a{b} {}"),
    ],
)
def test_a_template_is_the_system_message(
    own: tuple[str, ...], template: str, expected: str
) -> None:
    request = chat(*map(system, own), USER)
    assert templated(request, template).prompt.messages == (system(expected), USER)
    assert request.prompt.messages == (*map(system, own), USER)


def test_what_comes_later_stays() -> None:
    call = ChatMessage(
        role="assistant", content="", tool_calls=(ToolCall(id="1", name="f", arguments="{}"),)
    )
    request = chat(USER, call, system("Now be kind."), USER)
    after = templated(request, "Be short. {system}")
    assert after.prompt.messages == (system("Be short."), *request.prompt.messages)


def test_without_a_template_nothing_is_made_anew() -> None:
    request = chat(USER)
    assert templated(request, "") is request


def test_a_text_to_continue_has_no_place_for_one() -> None:
    text = CompletionRequest(
        model="chat", prompt=TextPrompt(text="Hello"), sampling=SamplingParams(), max_tokens=8
    )
    assert templated(text, "Be short.") is text


def test_a_changed_prompt_is_another_request_and_a_conversation_is_not() -> None:
    request = chat(USER)
    assert shaping(templated(request, "Be short.")) != shaping(request)
    assert shaping(chat(USER, conversation="thread-7")) == shaping(request)
