"""Requests that schemathesis makes up from the OpenAPI document, to the whole product with the real
model: none ends in a 5xx, and no answer contradicts the document, streamed ones included."""

import asyncio
import json
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import settings
from schemathesis.config import SchemathesisConfig
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection

from apps.core.ids import new_id
from apps.gateway.exceptions import IDEMPOTENCY_KEY
from apps.gateway.rest.openapi import document
from tests.serve import RunningProduct, manage

pytestmark = pytest.mark.e2e

SHORT_MIN_CASES, LONG_MIN_CASES = 200, 2_000
# A document cannot say all: what a context holds, that two fields must agree. Refusing a body that
# it allows is no contradiction; every other check of schemathesis runs.
CHECKS = {"positive_data_acceptance": {"enabled": False}}
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# What bounds an answer of each door; the others make none.
LIMIT_OF = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
MOST_TOKENS = 3
LONG_KEY = 200


@dataclass(slots=True)
class Tally:
    """What the requests of one run came to."""

    statuses: Counter[int] = field(default_factory=Counter)
    n_streamed: int = 0

    def note(self, response: schemathesis.Response) -> None:
        self.statuses[response.status_code] += 1
        self.n_streamed += is_event_stream(response)

    def __str__(self) -> str:
        by_status = ", ".join(f"{n} x {status}" for status, n in sorted(self.statuses.items()))
        return f"{self.statuses.total()} cases: {by_status}; {self.n_streamed} streamed"


@pytest.fixture(scope="module")
def tallies() -> dict[str, Tally]:
    return {"short": Tally(), "long": Tally()}


@schemathesis.deserializer("text/event-stream")
def _as_text(context: Any, response: schemathesis.Response) -> str:
    """The document calls a stream a string; ``events_match`` looks into it."""
    return response.text


def _doors(**config: Any) -> schemathesis.BaseSchema:
    """The document as the server will serve it; known here before there is one."""
    wanted: dict[str, Any] = {"checks": CHECKS, "request-timeout": 120, "seed": 5, **config}
    return schemathesis.openapi.from_dict(
        json.loads(document()), config=SchemathesisConfig.from_dict(wanted)
    )


doors = _doors()
# Every value of every field by turns is thousands of cases more: those are the long form's.
doors_in_short = _doors(phases={"coverage": {"enabled": False}})
MANAGEMENT = "/v1/manage/"


@pytest.fixture(scope="module")
def manager(product: RunningProduct) -> str:
    """A token of somebody who may do everything. What is made up names nothing that there is."""
    named = ("default", "made-up", "--owner", "admin")
    done = manage(product, "create_token", *named, "--scopes", "manage")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@doors_in_short.parametrize()
@settings(max_examples=20, deadline=None)
def test_no_request_breaks_a_door(
    case: schemathesis.Case, product: RunningProduct, manager: str, tallies: dict[str, Tally]
) -> None:
    ask(case, product, tallies["short"], manager=manager)


@pytest.mark.prove
@pytest.mark.timeout(3600)
@doors.parametrize()
@settings(max_examples=250, deadline=None)
def test_no_request_of_thousands_breaks_a_door(
    case: schemathesis.Case, product: RunningProduct, manager: str, tallies: dict[str, Tally]
) -> None:
    ask(case, product, tallies["long"], manager=manager)


@pytest.mark.parametrize(
    ("run", "min_cases"),
    [
        ("short", SHORT_MIN_CASES),
        pytest.param("long", LONG_MIN_CASES, marks=pytest.mark.prove),
    ],
)
def test_the_requests_were_many_and_met_the_model(
    run: str, min_cases: int, product: RunningProduct, tallies: dict[str, Tally]
) -> None:
    """After the tests above, in this order."""
    tally = tallies[run]
    print(f"schemathesis, {run}: {tally}")
    assert tally.statuses.total() >= min_cases
    assert tally.statuses[200] >= min_cases // 10
    assert tally.n_streamed > 0
    stats = asyncio.run(product.engine_stats())
    assert (stats.n_running, stats.n_waiting) == (0, 0)
    assert stats.n_blocks_free == stats.n_blocks_total


def ask(case: schemathesis.Case, product: RunningProduct, tally: Tally, *, manager: str) -> None:
    if isinstance(case.body, dict):
        made = case.meta and case.meta.components.get(ParameterLocation.BODY)
        model = (
            product.embedding_model if case.operation.path == "/v1/embeddings" else product.model
        )
        is_wrong = bool(made and made.mode.is_negative)
        tame(case.body, model, limit=LIMIT_OF.get(case.operation.path), is_wrong=is_wrong)
    name_anew(case)
    token = manager if case.operation.path.startswith(MANAGEMENT) else product.api_token
    response = case.call_and_validate(
        base_url=product.origin,
        headers={"Authorization": f"Bearer {token}"},
        excluded_checks=[negative_data_rejection] if wrongness_is_lost(case) else [],
    )
    tally.note(response)
    if is_event_stream(response):
        events_match(case, response)


def name_anew(case: schemathesis.Case) -> None:
    """Give most requests with an Idempotency-Key one of their own: those that are made are few, so
    that nearly all would be refused as another request under a known key. Long ones stay."""
    made = case.meta and case.meta.components.get(ParameterLocation.HEADER)
    is_right = not (made and made.mode.is_negative)
    key = str(case.headers.get(IDEMPOTENCY_KEY, ""))
    if is_right and 0 < len(key) < LONG_KEY and zlib.crc32(repr(case.body).encode()) % 20:
        case.headers[IDEMPOTENCY_KEY] = new_id("case")


def wrongness_is_lost(case: schemathesis.Case) -> bool:
    """True where what is sent may be right although it was made to be wrong: a form's fields are
    text, whatever they were made as, and the header of authorization is always sent."""
    if case.meta is None:
        return False
    headers = case.meta.components.get(ParameterLocation.HEADER)
    is_form = case.media_type == "multipart/form-data"
    return is_form or (headers is not None and headers.mode.is_negative)


def tame(body: dict[str, Any], model: str, *, limit: str | None, is_wrong: bool) -> None:
    """Let most requests reach the model, and end soon: in three tokens, one in fifty in forty.
    One in twenty is sent as it was made; what is wrong with a body stays wrong."""
    lot = zlib.crc32(repr(sorted(body.items(), key=str)).encode())
    if lot % 20 == 0:
        return
    if isinstance(body.get("model"), str):
        body["model"] = model
    most_tokens = 40 if lot % 50 == 1 else MOST_TOKENS
    if limit is not None and all(body.get(name) is None for name in TOKEN_LIMITS):
        body[limit] = most_tokens
    if not is_wrong:
        _bring_into_range(body, most_tokens)
        if limit is not None and lot % 3 == 0:
            body["stream"] = True


def _bring_into_range(body: dict[str, Any], most_tokens: int) -> None:
    if body.get("messages") == []:
        body["messages"] = [{"role": "user", "content": "Hello"}]
    for name in TOKEN_LIMITS:
        if body.get(name) is not None:
            body[name] = min(max(body[name], 1), most_tokens)
    if body.get("max_tokens") and body.get("max_completion_tokens"):
        body["max_tokens"] = body["max_completion_tokens"]
    for name, least, most in (("temperature", 0, 2), ("top_p", 0.01, 1), ("top_k", 0, 100)):
        if body.get(name) is not None:
            body[name] = min(max(body[name], least), most)
    if body.get("n") is not None:
        body["n"] = 1 + body["n"] % 2


def is_event_stream(response: schemathesis.Response) -> bool:
    return response.headers.get("content-type", [""])[0].startswith("text/event-stream")


def events_match(case: schemathesis.Case, response: schemathesis.Response) -> None:
    """Every event is of a struct that the document names for the stream, and the end is the end."""
    described = case.operation.schema.raw_schema
    answer = described["paths"][case.operation.path][case.operation.method]["responses"]["200"]
    allowed = answer["content"]["text/event-stream"]["schema"]["x-event-schemas"]
    validator = jsonschema.Draft202012Validator(
        {"anyOf": allowed, "components": described["components"]}
    )
    events = [each for each in response.text.split("\n\n") if not each.startswith(":")][:-1]
    if response.stream_cut_short:  # by the client, which reads so many events and no more
        events = events[:-1]
    elif case.operation.path in ("/v1/chat/completions", "/v1/completions"):
        assert events.pop() == "data: [DONE]"
    assert events
    for event in events:
        _, found, data = event.rpartition("data: ")
        assert found
        validator.validate(json.loads(data))
