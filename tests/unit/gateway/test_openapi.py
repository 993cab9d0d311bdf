"""The OpenAPI document: it validates, leaves no path out, and says what the code does."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest
from django.core.management import call_command
from openapi_spec_validator import validate

from apps.core.exceptions import AppError, InvalidRequest
from apps.gateway.rest.base import InferenceView
from apps.gateway.rest.openapi import document
from apps.gateway.rest.operations import Error
from apps.gateway.rest.struct_schemas import answer_schema, body_schema, form_schema
from config import doors
from config.asgi import application

# The token is in the body, or none is asked for.
WITHOUT_HEADER = {
    "POST /v1/auth/token/refresh",
    "POST /v1/auth/token/revoke",
    "GET /v1/auth/jwks.json",
}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(document())
    return found


def operations(described: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def body_of(described: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema of a POST's body, its references resolved."""
    body = described["paths"][path]["post"]["requestBody"]
    return resolved(described, body["content"]["application/json"]["schema"])


def resolved(described: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "components": described["components"]}


def is_valid(instance: Any, schema: dict[str, Any]) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(instance)


def test_it_validates(described: dict[str, Any]) -> None:
    assert described["openapi"] == "3.1.0"
    validate(described)


def test_the_command_writes_it_without_a_warning(described: dict[str, Any]) -> None:
    output = io.StringIO()
    call_command(
        "spectacular", format="openapi-json", validate=True, fail_on_warn=True, stdout=output
    )
    assert json.loads(output.getvalue()) == described


def test_every_path_and_method_of_the_doors_is_in_it(described: dict[str, Any]) -> None:
    served = set()
    for pattern in doors.urlpatterns:
        view = pattern.callback.cls  # type: ignore[union-attr]
        assert issubclass(view, InferenceView)
        if view.schema is None:  # the document itself
            continue
        path = "/" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(pattern.pattern))
        methods = [each for each in view.http_method_names if hasattr(view, each)]
        served |= {f"{method.upper()} {path}" for method in methods}
    assert {name for name, _ in operations(described)} == served
    assert {"POST /v1/chat/completions", "GET /v1/models/{name}"} <= served


def test_every_operation_is_named_secured_and_says_how_it_fails(described: dict[str, Any]) -> None:
    names = []
    for name, operation in operations(described):
        names.append(operation["operationId"])
        asks = None if name in WITHOUT_HEADER else [{"apiToken": []}]
        assert operation.get("security") == asks, name
        assert {"400", "401", "403", "413", "500", "503"} <= set(operation["responses"]), name
        assert ("429" in operation["responses"]) == ("requestBody" in operation), name
        for status, response in operation["responses"].items():
            if "$ref" in response:
                name_of_it = response["$ref"].removeprefix("#/components/responses/")
                response = described["components"]["responses"][name_of_it]
            assert "X-Request-Id" in response["headers"], (name, status)
            is_key = status == "409" and name.startswith("POST")  # of a request that runs
            is_for_later = status in ("429", "503") or is_key
            assert ("Retry-After" in response["headers"]) == is_for_later, (name, status)
            is_limit = status == "429"
            assert ("X-RateLimit-Remaining-tokens" in response["headers"]) == is_limit, name
            if int(status) >= 400:
                schema = response["content"]["application/json"]["schema"]
                body = "MessagesErrorBody" if "/v1/messages" in name else "Error"
                assert schema == {"$ref": f"#/components/schemas/{body}"}, (name, status)
    assert len(names) == len(set(names)) >= 4


def test_every_post_under_v1_takes_an_idempotency_key(described: dict[str, Any]) -> None:
    """And nothing else does: what only turns text into ids may be done twice, and an answer with
    tokens in it is not kept."""
    taking = set()
    for name, operation in operations(described):
        (answer,) = (each for code, each in operation["responses"].items() if code[0] == "2")
        names = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "header"}
        if "Idempotency-Replayed" in answer["headers"]:
            others = {"X-Response-Cache", "X-Conversation-Id", "If-Match"}
            assert names - others == {"Idempotency-Key"}, name
            assert {"409", "422"} <= set(operation["responses"]), name
            taking.add(name)
        else:
            assert names <= {"If-Match", "If-None-Match", "Upload-Offset"}, name
    posts = {name for name, _ in operations(described) if name.startswith("POST /v1/")}
    assert taking == {name for name in posts if not name.startswith("POST /v1/auth/")}
    assert "POST /v1/batches/{batch_id}/cancel" in taking


def test_what_has_a_tag_may_be_changed_by_it(described: dict[str, Any]) -> None:
    """And what takes one may refuse it; nothing takes one of what is never answered with one."""
    tagged, taking = set(), set()
    for name, operation in operations(described):
        (answer,) = (each for code, each in operation["responses"].items() if code[0] == "2")
        names = {each["name"] for each in operation.get("parameters", ())}
        path = name.partition(" ")[2]
        tagged |= {path} if "ETag" in answer["headers"] else set()
        taking |= {path} if "If-Match" in names else set()
        assert ("If-Match" in names) == ("412" in operation["responses"]), name
    assert taking <= tagged
    assert "/v1/manage/routes/{name}" in taking


def test_what_generates_may_be_answered_again(described: dict[str, Any]) -> None:
    telling = set()
    for name, operation in operations(described):
        parameters = {each["name"]: each for each in operation.get("parameters", ())}
        is_told = (
            "X-Response-Cache" in operation["responses"].get("200", {"headers": ()})["headers"]
        )
        assert is_told == ("X-Response-Cache" in parameters), name
        if is_told:
            wishes = parameters["X-Response-Cache"]["schema"]["enum"]
            assert wishes == ["use", "no-store"]
            assert parameters["X-Conversation-Id"]["schema"]["maxLength"] == 128
            telling.add(name)
    assert telling == {
        f"POST /v1/{path}" for path in ("chat/completions", "completions", "messages", "responses")
    }
    header = described["components"]["headers"]["X-Response-Cache"]
    assert header["schema"]["enum"] == ["hit", "miss", "coalesced"]


def test_the_error_body_is_the_one_that_errors_make() -> None:
    for error in (AppError(), InvalidRequest("Wrong.", code="invalid_value", param="n")):
        assert msgspec.to_builtins(msgspec.convert(error.body(), Error)) == error.body()


def test_a_body_is_what_the_decoder_takes(described: dict[str, Any]) -> None:
    schema = body_of(described, "/v1/chat/completions")
    messages = [{"role": "user", "content": "Hello"}]
    assert is_valid({"model": "m", "messages": messages}, schema)
    assert is_valid({"model": "m", "messages": messages, "stop": ["a"], "seed": -1}, schema)
    assert not is_valid({"messages": messages}, schema)
    assert not is_valid({"model": "m", "messages": "Hello"}, schema)
    assert not is_valid({"model": "m", "messages": messages, "nobody_knows": 1}, schema)


def test_a_refused_field_is_described_as_refused(described: dict[str, Any]) -> None:
    schema = body_of(described, "/v1/completions")
    body = {"model": "m", "prompt": "Hello"}
    assert is_valid({**body, "suffix": None}, schema)
    assert is_valid({**body, "suffix": ""}, schema)
    assert not is_valid({**body, "suffix": "!"}, schema)


def test_a_streaming_answer_names_its_events(described: dict[str, Any]) -> None:
    content = described["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}
    (event,) = content["text/event-stream"]["schema"]["x-event-schemas"]
    assert event == {"$ref": "#/components/schemas/ChatCompletionChunk"}
    assert "ChatCompletionChunk" in described["components"]["schemas"]


async def test_anyone_may_read_it_and_no_database_is_asked(described: dict[str, Any]) -> None:
    transport = httpx.ASGITransport(app=application)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        answer = await client.get("/v1/openapi.json")
        posted = await client.post("/v1/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == described
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET")


class Inner(msgspec.Struct, tag_field="type", tag="inner"):
    text: str


class Outer(msgspec.Struct, omit_defaults=True):
    inner: Inner
    many: list[Inner]
    note: str = ""


class Sent(msgspec.Struct):
    by_key: dict[str, Inner]
    pair: tuple[int, Inner]
    note: str = "n"
    usage: int | msgspec.UnsetType | None = msgspec.UNSET


class Upload(msgspec.Struct):
    file: bytes
    purpose: str


def test_an_answer_requires_what_is_always_sent() -> None:
    _, outer = answer_schema(Outer)
    assert [each.name for each in outer] == ["Outer", "Inner"]
    assert [each.schema["required"] for each in outer] == [["inner", "many"], ["type", "text"]]
    _, sent = answer_schema(Sent)
    assert [each.schema["required"] for each in sent] == [
        ["by_key", "pair", "note"],
        ["type", "text"],
    ]


def test_what_a_client_sends_may_leave_defaults_out() -> None:
    schema, (sent, _) = body_schema(Sent, {Sent: {"note": ("n",)}})
    assert schema == {"$ref": "#/components/schemas/Sent"}
    assert sent.schema["required"] == ["by_key", "pair"]
    assert sent.schema["properties"]["note"]["enum"] == [None, "n"]


class Other(msgspec.Struct, tag_field="type", tag="other"):
    number: int


def test_a_tag_is_required_where_it_tells_structs_apart() -> None:
    """As msgspec decodes: alone, a tagged struct may come without its tag."""
    assert msgspec.json.decode(b'{"text": "a"}', type=Inner) == Inner(text="a")
    _, (inner,) = body_schema(list[Inner], {})
    assert inner.schema["required"] == ["text"]
    with pytest.raises(msgspec.ValidationError, match="missing required field `type`"):
        msgspec.json.decode(b'{"text": "a"}', type=Inner | Other)
    _, both = body_schema(list[Inner | Other], {})
    assert [each.schema["required"] for each in both] == [["type", "text"], ["type", "number"]]


def test_the_bytes_of_a_form_are_a_file() -> None:
    _, (upload,) = form_schema(Upload)
    assert upload.schema["properties"] == {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"type": "string"},
    }


def test_two_structs_of_one_name_are_refused() -> None:
    namesake = msgspec.defstruct("Inner", [("number", int)], module="json")
    both = msgspec.defstruct("Both", [("one", Inner), ("other", namesake)])
    with pytest.raises(ValueError, match="Two structs are named Inner"):
        answer_schema(both)
