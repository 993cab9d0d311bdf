import asyncio
import threading
import time
from typing import Any

import pytest
from msgspec import structs

from engine_service.errors import ModelError, RequestError
from engine_service.frontend import Frontend
from engine_service.protocol import (
    ChatMessage,
    ChatPrompt,
    OutputFormat,
    Prepare,
    Prompt,
    SamplingParams,
    Standing,
    TextPrompt,
    TokenPrompt,
)
from engine_service.tokenizer import load_tokenizer
from tests.unit.frontend.tokenizers import END, byte_level, chat_tokenizer, model_info


def prepare(prompt: Prompt, *, max_tokens: int | None = None, **sampling: Any) -> Prepare:
    return Prepare(
        request_id="r",
        prompt=prompt,
        sampling=SamplingParams(**sampling),
        max_tokens=max_tokens,
        cache_salt="tenant",
        standing=Standing(tenant="7", priority=1),
    )


def chat(*contents: str, role: str = "user") -> ChatPrompt:
    return ChatPrompt(messages=tuple(ChatMessage(role=role, content=text) for text in contents))


@pytest.fixture
def frontend() -> Frontend:
    return Frontend(chat_tokenizer(), model_info(max_model_len=64))


async def test_a_chat_is_rendered_with_the_template_and_its_special_tokens(
    frontend: Frontend,
) -> None:
    prepared = await frontend.prepare(prepare(chat("hi")))
    expected = byte_level().encode(f"[user] hi{END}[assistant]").ids
    assert byte_level().token_to_id(END) in expected
    assert prepared.token_ids == tuple(expected)
    assert prepared.max_new_tokens == 64 - len(expected)
    assert prepared.cache_salt == "tenant"
    assert prepared.standing == Standing(tenant="7", priority=1)


def test_text_and_tokens_are_taken_as_they_stand(frontend: Frontend) -> None:
    text = frontend.prepare_now(prepare(TextPrompt(text="the dog"), max_tokens=3))
    assert text.token_ids == tuple(byte_level().encode("the dog").ids)
    assert text.max_new_tokens == 3
    tokens = frontend.prepare_now(prepare(TokenPrompt(token_ids=(5, 6, 7))))
    assert tokens.token_ids == (5, 6, 7)


@pytest.mark.parametrize(
    ("prompt", "options", "code", "param"),
    [
        (chat(), {}, "invalid_value", "messages"),
        (chat("x", role="tool"), {}, "invalid_value", "messages"),
        (chat("x" * 20_000), {}, "context_length_exceeded", "messages"),
        (chat(*[""] * 20_000), {}, "context_length_exceeded", "messages"),
        (chat("long " * 40), {}, "context_length_exceeded", "messages"),
        (TextPrompt(text=""), {}, "invalid_value", "prompt"),
        (TextPrompt(text="x" * 20_000), {}, "context_length_exceeded", "prompt"),
        (TokenPrompt(token_ids=()), {}, "invalid_value", "prompt"),
        (TokenPrompt(token_ids=(-1,)), {}, "invalid_value", "prompt"),
        (TokenPrompt(token_ids=(10**9,)), {}, "invalid_value", "prompt"),
        (chat("hi"), {"max_tokens": 0}, "invalid_value", "max_tokens"),
        (chat("hi"), {"max_tokens": 64}, "context_length_exceeded", "max_tokens"),
        (chat("hi"), {"temperature": float("nan")}, "invalid_value", "temperature"),
        (chat("hi"), {"n": 17}, "invalid_value", "n"),
    ],
)
def test_what_cannot_be_honoured_names_its_field(
    frontend: Frontend, prompt: Prompt, options: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        frontend.prepare_now(prepare(prompt, **options))
    assert (caught.value.code, caught.value.param) == (code, param)


def test_more_turns_than_the_context_has_tokens_are_not_rendered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered: list[int] = []
    tokenizer = chat_tokenizer()
    frontend = Frontend(tokenizer, model_info(max_model_len=64))
    monkeypatch.setattr(
        tokenizer, "apply_chat_template", lambda turns, **_: rendered.append(len(turns)) or "x"
    )
    with pytest.raises(RequestError, match="there are 65 messages") as refused:
        frontend.prepare_now(prepare(chat(*[""] * 65)))
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
    frontend.prepare_now(prepare(chat(*[""] * 64)))
    assert rendered == [64]


def test_the_reason_of_a_template_is_passed_on(frontend: Frontend) -> None:
    with pytest.raises(RequestError, match="no tools here"):
        frontend.prepare_now(prepare(chat("x", role="tool")))


def test_a_model_without_a_chat_template_refuses_messages() -> None:
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    with pytest.raises(RequestError, match="no chat template"):
        Frontend(bare, model_info()).prepare_now(prepare(chat("hi")))


def test_a_template_cannot_reach_python() -> None:
    from transformers import PreTrainedTokenizerFast

    evil = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(),
        chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}",
    )
    with pytest.raises(RequestError, match="unsafe"):
        Frontend(evil, model_info()).prepare_now(prepare(chat("hi")))


def test_a_directory_without_a_tokenizer_is_a_model_error(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path)


def test_tokenizing_a_long_text_leaves_the_other_threads_running() -> None:
    text = "the lazy dog " * 40_000
    frontend = Frontend(chat_tokenizer(), model_info(max_model_len=10**6))
    worker = threading.Thread(
        target=frontend.prepare_now, args=(prepare(TextPrompt(text=text)),), daemon=True
    )
    started_at = last = time.perf_counter()
    longest_s = 0.0
    worker.start()
    while worker.is_alive():
        now = time.perf_counter()
        longest_s, last = max(longest_s, now - last), now
    assert longest_s < 0.5 * (last - started_at)


def test_a_closed_frontend_takes_no_more(frontend: Frontend) -> None:
    frontend.close()
    with pytest.raises(RuntimeError):
        asyncio.run(frontend.prepare(prepare(chat("hi"))))


def test_what_the_backend_lacks_is_refused_before_it_runs() -> None:
    """By name, and before anything is reserved for the request."""
    info = model_info(unsupported=frozenset({"top_k", "seed"}), takes_masks=False)
    frontend = Frontend(chat_tokenizer(), info)
    prompt = TextPrompt(text="the dog")
    assert frontend.prepare_now(prepare(prompt, temperature=0.5)).max_new_tokens > 0
    with pytest.raises(RequestError, match="the echo backend lacks it") as error:
        frontend.prepare_now(prepare(prompt, top_k=5))
    assert (error.value.code, error.value.param) == ("unsupported_parameter", "top_k")
    held = structs.replace(prepare(prompt), output_format=OutputFormat(param="text.format"))
    with pytest.raises(RequestError) as error:
        frontend.prepare_now(held)
    assert (error.value.code, error.value.param) == ("unsupported_parameter", "text.format")
    assert Frontend(chat_tokenizer(), model_info()).prepare_now(held).constraint is not None
