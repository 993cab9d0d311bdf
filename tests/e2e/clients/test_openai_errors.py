"""What is wrong, in the official client's own exceptions: the field is named, nothing is ignored,
and neither the engine nor anybody else notices."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.clients.asking import Asker
from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

HI = [{"role": "user", "content": "Hi"}]
SCHEMA_PARAM = "response_format.json_schema.schema"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
MAX_HEALTHZ_P99_S = 0.25
# More than this would be a schema that holds others up.
MAX_REFUSAL_S = 5.0
N_POLLS = 100


@pytest.fixture(scope="module", autouse=True)
def _the_engine_lives_through_all_of_this(product: RunningProduct, asker: Asker) -> Iterator[None]:
    before = product.engine()
    rows = product.rows("SELECT count(*) FROM metering_usagerecord WHERE state = 'reserved'")
    yield
    after = product.engine()
    assert (after.pid, after.epoch, after.state) == (before.pid, before.epoch, before.state)
    assert "Paris" in asker.text("What is the capital of France?")
    assert (
        product.rows("SELECT count(*) FROM metering_usagerecord WHERE state = 'reserved'") == rows
    )


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": schema}}


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


WRONG: list[tuple[dict[str, Any], str, str]] = [
    # Of a wrong type.
    ({"temperature": "hot"}, "invalid_type", "temperature"),
    ({"max_tokens": 1.5}, "invalid_type", "max_tokens"),
    ({"n": "3"}, "invalid_type", "n"),
    ({"stream": "yes"}, "invalid_type", "stream"),
    ({"stop": 5}, "invalid_type", "stop"),
    ({"logit_bias": [1]}, "invalid_type", "logit_bias"),
    ({"messages": "Hi"}, "invalid_type", "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "invalid_type", "messages[0].content"),
    ({"tools": {}}, "invalid_type", "tools"),
    # Of no value that there is.
    ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid_value", "messages[0].role"),
    ({"messages": []}, "empty_array", "messages"),
    ({"n": 10_000}, "invalid_value", "n"),
    ({"n": 0}, "invalid_value", "n"),
    ({"n": 10**30}, "", "n"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": 10**6}, "context_length_exceeded", "max_tokens"),
    ({"temperature": 2.5}, "invalid_value", "temperature"),
    ({"temperature": -1}, "invalid_value", "temperature"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"top_p": 1.5}, "invalid_value", "top_p"),
    ({"top_k": -1}, "invalid_value", "top_k"),
    ({"min_p": 1.5}, "invalid_value", "min_p"),
    ({"presence_penalty": 3}, "invalid_value", "presence_penalty"),
    ({"frequency_penalty": -3}, "invalid_value", "frequency_penalty"),
    ({"repetition_penalty": 0}, "invalid_value", "repetition_penalty"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "invalid_value", "stop"),
    ({"stop": ""}, "invalid_value", "stop"),
    ({"logit_bias": {"x": 1}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {"1": 101}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {"99999999": 1}}, "invalid_value", "logit_bias"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "invalid_value", "max_tokens"),
    ({"service_tier": "auto", "response_format": {"type": "yaml"}}, "", "response_format"),
    # What nobody knows, and what is not built.
    ({"frobnicate": 1}, "unknown_parameter", "frobnicate"),
    (
        {"messages": [{"role": "user", "content": "x", "mood": 1}]},
        "unknown_parameter",
        "messages[0].mood",
    ),
    ({"audio": {"voice": "alloy", "format": "mp3"}}, "unsupported_parameter", "audio"),
    ({"modalities": ["audio"]}, "unsupported_parameter", "modalities"),
    ({"prediction": {"type": "content", "content": "x"}}, "unsupported_parameter", "prediction"),
    ({"web_search_options": {}}, "unsupported_parameter", "web_search_options"),
    ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions"),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:,"}}],
                }
            ]
        },
        "",
        "messages[0].content",
    ),
    # Of tools.
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "perhaps"}, "", "tool_choice"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "invalid_value",
        "tool_choice",
    ),
    ({"tools": [TOOL, TOOL]}, "invalid_value", "tools"),
    ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "", "tools"),
    ({"tools": [TOOL], "ignore_eos": True}, "invalid_value", "ignore_eos"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "", "messages[0].tool_call_id"),
    # Of schemas.
    ({"response_format": {"type": "json_schema"}}, "", "response_format.json_schema"),
    (
        {"response_format": json_schema({"type": "string", "pattern": "(?=a)b"})},
        "unsupported_schema",
        SCHEMA_PARAM,
    ),
    (
        {"response_format": json_schema({"type": "string", "pattern": "("})},
        "unsupported_schema",
        SCHEMA_PARAM,
    ),
    ({"response_format": json_schema({"not": {}})}, "unsupported_schema", SCHEMA_PARAM),
    (
        {"tools": [TOOL, tool(name="g", strict=True, parameters={"not": {}})]},
        "unsupported_schema",
        "tools[1].function.parameters",
    ),
]


@pytest.mark.parametrize(("more", "code", "param"), WRONG, ids=lambda value: str(value)[:40])
def test_the_field_that_is_wrong_is_named(
    asker: Asker, product: RunningProduct, more: dict[str, Any], code: str, param: str
) -> None:
    n_rows = product.rows("SELECT count(*) FROM metering_usagerecord")
    with pytest.raises(openai.BadRequestError) as refused:
        asker.client.post(
            "/chat/completions",
            body={"model": asker.model, "messages": HI, "max_tokens": 4, **more},
            cast_to=object,
        )
    error = refused.value
    body = error.response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert error.type == "invalid_request_error"
    assert error.param is not None and error.param.startswith(param), error.param
    if code:
        assert (error.param, error.code) == (param, code)
    assert error.response.headers["x-should-retry"] == "false"
    assert error.request_id == error.response.headers["x-request-id"]
    assert product.rows("SELECT count(*) FROM metering_usagerecord") == n_rows


def test_a_missing_field_is_named(asker: Asker) -> None:
    for body, param in (({"messages": HI}, "model"), ({"model": asker.model}, "messages")):
        with pytest.raises(openai.BadRequestError) as refused:
            asker.client.post("/chat/completions", body=body, cast_to=object)
        assert (refused.value.param, refused.value.code) == (param, "missing_required_parameter")


def test_an_unknown_model(asker: Asker) -> None:
    for ask in (
        lambda: asker.client.chat.completions.create(model="no/such", messages=HI),
        lambda: asker.client.completions.create(model="no/such", prompt="Hi"),
        lambda: asker.client.models.retrieve("no/such"),
    ):
        with pytest.raises(openai.NotFoundError) as missing:
            ask()
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


def test_a_wrong_token(asker: Asker) -> None:
    stranger = Asker(asker.client.with_options(api_key="sk-nano-wrong"), asker.model)
    error = stranger.refusal()
    assert isinstance(error, openai.AuthenticationError)
    assert (error.code, error.param) == ("invalid_api_key", None)
    assert error.response.headers["www-authenticate"] == "Bearer"
    assert error.response.headers["x-should-retry"] == "false"


def test_too_much_for_the_context(asker: Asker) -> None:
    for text in ("word " * 9_000, "x" * 3_000_000):
        error = asker.refusal(text)
        assert (error.code, error.param) == ("context_length_exceeded", "messages")


def test_a_schema_that_explodes_is_refused_while_others_go_on(
    asker: Asker, product: RunningProduct
) -> None:
    bomb = {"allOf": [{"type": "string", "pattern": "a" * n + ".*b"} for n in range(1, 41)]}
    took_s: list[float] = []

    def send() -> None:
        # Each is new to the server: what it knows to be wrong it refuses at once.
        schema = {"title": f"bomb {len(took_s)}", **bomb}
        began_s = time.monotonic()
        error = asker.refusal(response_format=json_schema(schema))
        took_s.append(time.monotonic() - began_s)
        assert error.status_code == 400
        assert (error.param, error.code) == (SCHEMA_PARAM, "unsupported_schema")
        assert "too much time or memory" in error.message

    with _meanwhile(send) as is_over:
        waits_s = _healthz_waits(product, until=is_over)
    p99_s = sorted(waits_s)[int(len(waits_s) * 0.99)]
    print(
        f"{len(took_s)} exploding schemas refused within {max(took_s):.2f} s each; "
        f"/healthz p99 {p99_s * 1000:.0f} ms over {len(waits_s)} polls meanwhile"
    )
    assert max(took_s) < MAX_REFUSAL_S
    assert p99_s < MAX_HEALTHZ_P99_S


@contextmanager
def _meanwhile(send: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Send the same again and again until told, and see that it went well."""
    stop, failures = threading.Event(), []

    def run() -> None:
        try:
            while not stop.is_set():
                send()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: bool(failures)
    finally:
        stop.set()
        thread.join(timeout=60)
    assert failures == []


def _healthz_waits(product: RunningProduct, *, until: Callable[[], bool]) -> list[float]:
    waits_s = []
    with httpx.Client(base_url=product.origin, timeout=30) as http:
        while len(waits_s) < N_POLLS and not until():
            began_s = time.monotonic()
            assert http.get("/healthz").status_code == 200
            waits_s.append(time.monotonic() - began_s)
            time.sleep(0.02)  # paced, so that the polls span the whole of the load
    return waits_s


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ('{"items": ' * 100 + "{}" + "}" * 100, "nested"),
        ('{"type": "string", "enum": ["' + "x" * 200_000 + '"]}', "characters"),
        ('{"enum": [' + ", ".join(f'"word {n}"' for n in range(20_000)) + "]}", "characters"),
    ],
    ids=["deep", "one long word", "many words"],
)
def test_a_schema_that_is_too_deep_or_too_large(
    asker: Asker, product: RunningProduct, schema: str, said: str
) -> None:
    """Written by hand: the client itself can write no more levels than Python recurses."""
    body = {"model": asker.model, "messages": HI, "response_format": json_schema({"here": 1})}
    began_s = time.monotonic()
    answer = post(product, json.dumps(body).replace('{"here": 1}', schema).encode())
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == SCHEMA_PARAM, error
    assert said in error["message"]
    assert time.monotonic() - began_s < MAX_REFUSAL_S


def test_a_body_that_is_nested_without_end(asker: Asker, product: RunningProduct) -> None:
    head = f'{{"model": "{asker.model}", "messages": '.encode()
    for rest in (
        b"[" * 100_000,
        b'[], "response_format": ' + b'{"a": ' * 1000 + b"1" + b"}" * 1001,
    ):
        answer = post(product, head + rest)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"


def post(product: RunningProduct, body: bytes) -> httpx.Response:
    headers = {"Authorization": f"Bearer {product.api_token}", "Content-Type": "application/json"}
    url = f"{product.base_url}/chat/completions"
    return httpx.post(url, content=body, headers=headers, timeout=30)
