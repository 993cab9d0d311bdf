"""Defaults of routes are held to the bounds of requests, by the door and the engine."""

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apps.core.exceptions import InvalidRequest
from apps.gateway.chat_schemas import ChatBody, chat_request
from apps.gateway.decoding import decode
from apps.gateway.experimenting import with_defaults
from apps.gateway.schemas import CompletionBody, completion_requests
from apps.routing.defaults import defaults_problems, defaults_read, defaults_said
from apps.routing.types import DEFAULT_NAMES
from engine_service.errors import RequestError
from engine_service.validation import _check_penalties, _check_sampling, _max_new_tokens
from tests.unit.engine.test_validation import INFO

NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-3, 3),
    st.integers(-(2**40), 2**40),
    st.integers(-2, 200),
)
CHAT = msgspec.json.Decoder(ChatBody)


def is_taken(name: str, value: float) -> bool:
    """Whether a request with it goes all the way."""
    message = {"role": "user", "content": "Hi"}
    try:
        body = decode(CHAT, msgspec.json.encode({"model": "m", "messages": [message], name: value}))
        request = chat_request(body)
        _check_sampling(request.sampling)
        _check_penalties(request.sampling)
        if request.max_tokens is not None and request.max_tokens < 1:
            _max_new_tokens(request.max_tokens, n_prompt=1, info=INFO)
    except (InvalidRequest, RequestError):
        return False
    return True


@pytest.mark.parametrize("name", DEFAULT_NAMES)
@given(value=NUMBERS)
@example(value=0)
@example(value=0.01)
@example(value=1)
@example(value=2)
@example(value=100)
@example(value=2**31 - 1)
@example(value=2**31)
def test_a_default_is_taken_where_a_request_is(name: str, value: float) -> None:
    assert (defaults_problems({name: value}) == []) == is_taken(name, value)


@pytest.mark.parametrize("value", [True, "0.5", None, [], float("nan"), float("inf")])
@pytest.mark.parametrize("name", DEFAULT_NAMES)
def test_what_is_no_number_is_refused_by_name(name: str, value: Any) -> None:
    (problem,) = defaults_problems({name: value})
    assert problem.startswith(f"{name} must be a ")


def test_words() -> None:
    assert defaults_read(["temperature=0.2", "max_tokens=64", "top_p=1"]) == {
        "temperature": 0.2, "max_tokens": 64, "top_p": 1,
    }  # fmt: skip
    assert defaults_said({"top_p": 0.5, "max_tokens": 64}) == "max_tokens=64 top_p=0.5"
    for words, said in (
        (["temperature"], "'temperature' is not a name and a value"),
        (["temperature=warm"], "temperature must be a number, not 'warm'."),
        (["top_k=1", "top_k=2"], "top_k is there twice."),
    ):
        with pytest.raises(ValueError, match=said):
            defaults_read(words)


DEFAULTS = {"temperature": 0.25, "top_k": 7, "max_tokens": 64}


def chat(**fields: Any) -> Any:
    message = {"role": "user", "content": "Hi"}
    body = {"model": "m", "messages": [message], **fields}
    return with_defaults(chat_request(decode(CHAT, msgspec.json.encode(body))), DEFAULTS)


def test_defaults_hold_where_a_request_says_nothing() -> None:
    request = chat(top_k=None)
    assert (request.sampling.temperature, request.sampling.top_k) == (0.25, 7)
    assert (request.max_tokens, request.length_cap) == (None, 64)
    request = chat(temperature=1, top_k=0, max_completion_tokens=9)
    assert (request.sampling.temperature, request.sampling.top_k) == (1, 0)
    assert (request.max_tokens, request.length_cap) == (9, None)


def test_a_default_length_takes_the_place_of_the_sixteen_of_completions() -> None:
    for given_length, expected in ((None, (None, 64)), (5, (5, None))):
        body = CompletionBody(model="m", prompt="Hi", max_tokens=given_length)
        (request,) = completion_requests(body)
        request = with_defaults(request, DEFAULTS)
        assert (request.max_tokens, request.length_cap) == expected


def test_without_defaults_a_request_is_as_it_came() -> None:
    message = {"role": "user", "content": "Hi"}
    body = decode(CHAT, msgspec.json.encode({"model": "m", "messages": [message]}))
    request = chat_request(body)
    assert with_defaults(request, {}) is request
