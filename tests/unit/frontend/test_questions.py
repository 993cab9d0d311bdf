"""Questions about text that the frontend answers by itself."""

import dataclasses

import pytest

from engine_service.errors import RequestError
from engine_service.frontend import Frontend
from engine_service.protocol import (
    MAX_DETOKENIZE_TOKENS,
    MAX_TOKENIZE_INPUTS,
    ChatMessage,
    ChatPrompt,
    Detokenize,
    Detokenized,
    TextPrompt,
    Tokenize,
    Tokenized,
    TokenizedInputs,
    TokenizeInputs,
    TokenPrompt,
)
from tests.unit.frontend.tokenizers import END, byte_level, chat_tokenizer, model_info

CHAT = ChatPrompt(messages=(ChatMessage(role="user", content="hi"),))


@pytest.fixture
def frontend() -> Frontend:
    return Frontend(chat_tokenizer(), model_info(max_model_len=64))


@pytest.fixture
def embedding_frontend() -> Frontend:
    info = dataclasses.replace(model_info(max_model_len=8), task="embed", embedding_size=4)
    return Frontend(chat_tokenizer(), info)


def tokenized(frontend: Frontend, question: Tokenize) -> Tokenized:
    answer = frontend.answer_now(question)
    assert isinstance(answer, Tokenized)
    return answer


def text_of(frontend: Frontend, *token_ids: int) -> str:
    answer = frontend.answer_now(Detokenize(request_id="r", token_ids=token_ids))
    assert isinstance(answer, Detokenized)
    return answer.text


async def test_a_text_and_a_chat(frontend: Frontend) -> None:
    answer = await frontend.answer(Tokenize(request_id="r", prompt=TextPrompt(text="the dog")))
    ids = byte_level().encode("the dog").ids
    assert answer == Tokenized(request_id="r", token_ids=tuple(ids))
    answer = tokenized(frontend, Tokenize(request_id="r", prompt=CHAT, with_strings=True))
    encoding = byte_level().encode(f"[user] hi{END}[assistant]")
    assert answer.token_ids == tuple(encoding.ids)
    assert answer.strings == tuple(encoding.tokens)
    assert END in answer.strings


def test_special_tokens_are_added_or_not() -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from tests.unit.frontend.tokenizers import CHAT_TEMPLATE, Tokenizer

    inner = Tokenizer.from_str(byte_level().to_str())
    end = inner.token_to_id(END)
    inner.post_processor = TemplateProcessing(single=f"{END} $A {END}", special_tokens=[(END, end)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=CHAT_TEMPLATE)
    frontend = Frontend(tokenizer, model_info(max_model_len=64))
    bare = tuple(byte_level().encode("hi").ids)
    for add, expected in ((None, (end, *bare, end)), (True, (end, *bare, end)), (False, bare)):
        question = Tokenize(request_id="r", prompt=TextPrompt(text="hi"), add_special_tokens=add)
        assert tokenized(frontend, question).token_ids == expected
    chat = tuple(byte_level().encode(f"[user] hi{END}[assistant]").ids)
    for add, expected in ((None, chat), (False, chat), (True, (end, *chat, end))):
        question = Tokenize(request_id="r", prompt=CHAT, add_special_tokens=add)
        assert tokenized(frontend, question).token_ids == expected


def test_what_is_beyond_the_context_is_counted_and_far_beyond_it_refused(
    frontend: Frontend,
) -> None:
    assert (
        len(tokenized(frontend, Tokenize(request_id="r", prompt=TextPrompt(text=""))).token_ids)
        == 0
    )
    longer = TextPrompt(text="x" * 100)
    assert len(tokenized(frontend, Tokenize(request_id="r", prompt=longer)).token_ids) > 64
    with pytest.raises(RequestError) as refused:
        frontend.answer_now(Tokenize(request_id="r", prompt=TextPrompt(text="x" * 20_000)))
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")


def test_ids_become_the_text_that_they_came_from(frontend: Frontend) -> None:
    text = f"naïve 👍🏽 你好{END} the dog "
    ids = byte_level().encode(text).ids
    assert text_of(frontend, *ids) == text
    assert text_of(frontend) == ""


@pytest.mark.parametrize(
    ("token_ids", "says"),
    [
        ((1, -1), "token id -1"),
        ((10**6,), "token id 1000000"),
        ((1,) * (MAX_DETOKENIZE_TOKENS + 1), "at most 262144, not 262145"),
    ],
)
def test_ids_that_are_none_are_refused(
    frontend: Frontend, token_ids: tuple[int, ...], says: str
) -> None:
    with pytest.raises(RequestError, match=says) as refused:
        frontend.answer_now(Detokenize(request_id="r", token_ids=token_ids))
    assert (refused.value.code, refused.value.param) == ("invalid_value", "tokens")


def test_inputs_are_those_that_an_embedding_takes(
    embedding_frontend: Frontend, frontend: Frontend
) -> None:
    inputs = (TextPrompt(text="the"), TokenPrompt(token_ids=(5, 6)))
    question = TokenizeInputs(request_id="r", inputs=inputs)
    ids = tuple(byte_level().encode("the").ids)
    assert embedding_frontend.answer_now(question) == TokenizedInputs(
        request_id="r", inputs=(ids, (5, 6))
    )
    most = (TokenPrompt(token_ids=(1,)),) * MAX_TOKENIZE_INPUTS
    answer = embedding_frontend.answer_now(TokenizeInputs(request_id="r", inputs=most))
    assert isinstance(answer, TokenizedInputs)
    assert len(answer.inputs) == MAX_TOKENIZE_INPUTS == 2048
    for refused_inputs, param in (
        ((), "input"),
        ((*most, most[0]), "input"),
        ((*inputs, TokenPrompt(token_ids=(1,) * 9)), "input[2]"),
        ((TextPrompt(text=""),), "input[0]"),
    ):
        with pytest.raises(RequestError) as refused:
            embedding_frontend.answer_now(TokenizeInputs(request_id="r", inputs=refused_inputs))
        assert refused.value.param == param
    with pytest.raises(RequestError) as refused:
        frontend.answer_now(question)
    assert (refused.value.code, refused.value.param) == ("unsupported_task", "input")
