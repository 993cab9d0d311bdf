"""Hostile bodies over HTTP, all at once: each is refused by the name of its field and in bounded
time, while health checks stay quick and another client's stream says what it says alone."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import msgspec
import psutil
import pytest

from apps.gateway.chat_schemas import ChatBody
from apps.gateway.schemas import CompletionBody
from tests.faults.streaming import connection, long_answer, read_stream, request_bytes
from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

N_AT_ONCE: Final = 4
N_SLOW: Final = 20
N_POLLS: Final = 100
MAX_REFUSAL_S: Final = 10.0
MAX_HEALTHZ_P99_S: Final = 0.25
MAX_GROWTH_BYTES: Final = 64 << 20
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA_PARAM: Final = "response_format.json_schema.schema"
HI: Final = [{"role": "user", "content": "Hi"}]
# Taken whatever they are, because they do nothing.
ANYTHING: Final = {
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    """param: how the name of the field must begin."""

    name: str
    body: bytes
    param: str | None
    path: str = CHAT
    status: int = 400


def corpus(model: str) -> list[Hostile]:
    chat = {"model": model, "messages": HI, "max_tokens": 1}
    completion = {"model": model, "prompt": "Hi", "max_tokens": 1}
    return [
        *_wrong_types(ChatBody, chat, path=CHAT),
        *_wrong_types(CompletionBody, completion, path=COMPLETIONS),
        *_values(chat),
        *_schemas(chat),
        *_bodies(chat),
    ]


def _wrong_types(
    struct: type[msgspec.Struct], body: dict[str, Any], *, path: str
) -> Iterator[Hostile]:
    for each in msgspec.structs.fields(struct):
        if each.name in ANYTHING:
            continue
        for wrong in ({"x": [1]}, [[{}]]):
            yield Hostile(
                name=f"{path}: {each.name} {wrong}",
                body=json.dumps({**body, each.name: wrong}).encode(),
                param=each.name,
                path=path,
            )


def _values(body: dict[str, Any]) -> Iterator[Hostile]:
    values: dict[str, dict[str, Any]] = {
        "messages[0].role": {"messages": [{"role": "wizard", "content": "x"}]},
        "messages": {"messages": [{"role": "user", "content": "word " * 200_000}]},
        "n": {"n": 10_000},
        "max_tokens": {"max_tokens": 10**9},
        "stop": {"stop": ["x" * 1_000_000]},
        "stop_token_ids": {"stop_token_ids": list(range(100_000))},
        "logit_bias": {"logit_bias": {str(n): 1 for n in range(100_000)}},
        "tools": {
            "tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(10_000)]
        },
    }
    for param, more in values.items():
        yield Hostile(name=f"the value of {param}", body=_json({**body, **more}), param=param)


def _schemas(body: dict[str, Any]) -> Iterator[Hostile]:
    def pattern(regex: str) -> dict[str, Any]:
        return {"type": "string", "pattern": regex}

    schemas: dict[str, Any] = {
        "patterns whose product explodes": {
            "allOf": [pattern("a" * n + ".*b") for n in range(1, 41)]
        },
        "a pattern that looks around": pattern("(?=a+)+b"),
        "an enum of 100,000": {"enum": [f"word {n}" for n in range(100_000)]},
        "references in a ring": {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        },
        "a reference to nowhere": {"$ref": "#/$defs/none"},
        "a reference to elsewhere": {"$ref": "http://127.0.0.1:9/schema.json"},
    }
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    for name, schema in {**schemas, "200 levels": deep}.items():
        chosen = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        sent = _json({**body, "response_format": chosen})
        yield Hostile(name=name, body=sent, param=SCHEMA_PARAM)
    # Their automata are made as they are walked, so that these cost no more than others.
    for regex in ("^((a{1,1000}){1,1000}){1,1000}$", "^(a|b)*a(a|b){2000}c$"):
        chosen = {"type": "json_schema", "json_schema": {"name": "s", "schema": pattern(regex)}}
        sent = _json({**body, "response_format": chosen, "max_tokens": 24})
        yield Hostile(name=regex, body=sent, param=None, status=200)


def _bodies(body: dict[str, Any]) -> Iterator[Hostile]:
    whole = _json(body)
    bodies = {
        "nothing": b"",
        "half of it": whole[: len(whole) // 2],
        "lists without end": b"[" * 1_000_000,
        "objects without end": b'{"metadata": ' + b'{"a":' * 500_000,
        "bytes that are no text": whole.replace(b"Hi", b"\xff\xfe"),
        "half a character": whole.replace(b"Hi", b"\\ud83d"),
        "a number that is none": whole.replace(b'"max_tokens": 1', b'"max_tokens": NaN'),
    }
    for name, sent in bodies.items():
        yield Hostile(name=name, body=sent, param=None)
    yield Hostile(name="27 MB", body=b" " * 27_000_000, param=None, status=413)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


@dataclass(slots=True)
class Report:
    wrong: list[str] = field(default_factory=list)
    n_sent: int = 0
    slowest_s: float = 0.0
    slowest: str = ""


async def send_all(product: RunningProduct, requests: list[Hostile], report: Report) -> None:
    left = iter(requests)
    headers = {"Authorization": f"Bearer {product.api_token}", "Content-Type": "application/json"}

    async def work(http: httpx.AsyncClient) -> None:
        for request in left:
            began_s = time.monotonic()
            answer = await http.post(request.path, content=request.body)
            took_s = time.monotonic() - began_s
            report.n_sent += 1
            if took_s > report.slowest_s:
                report.slowest_s, report.slowest = took_s, request.name
            if fault := fault_of(answer, request):
                report.wrong.append(f"{request.name}: {fault}")

    async with httpx.AsyncClient(base_url=product.origin, headers=headers, timeout=60) as http:
        await asyncio.gather(*(work(http) for _ in range(N_AT_ONCE)))


def fault_of(answer: httpx.Response, request: Hostile) -> str | None:
    said = f"{answer.status_code} {answer.text[:200]}"
    if answer.status_code != request.status:
        return said
    if answer.status_code == 200:
        return None
    error = answer.json()["error"]
    if request.param is None:
        is_named = error["param"] is None
    else:
        is_named = (error["param"] or "").startswith(request.param)
    return None if is_named and error["code"] and error["message"] else said


@contextlib.asynccontextmanager
async def slow_connections(product: RunningProduct, body: dict[str, Any]) -> AsyncIterator[None]:
    """Connections whose requests come a byte at a time, and never whole."""
    sent = request_bytes(product, body)
    writers = []

    async def drip(writer: asyncio.StreamWriter, start: int) -> None:
        writer.write(sent[:start])
        for byte in sent[start:-1]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.25)

    async with asyncio.TaskGroup() as group:
        tasks = []
        for number in range(N_SLOW):
            _, writer = await asyncio.open_connection(product.host, product.port)
            writers.append(writer)
            # Half of them stop within their head, the others within their body.
            start = 20 if number % 2 else len(sent) - 60
            tasks.append(group.create_task(drip(writer, start)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for writer in writers:
                writer.transport.abort()


async def text_of(product: RunningProduct) -> tuple[str, list[str]]:
    """Return what the other client's stream says, and how it ends."""
    body = {**long_answer(product, n_tokens=100), "seed": 5}
    async with connection(product, body) as reader:
        transcript = await read_stream(reader)
    assert transcript.is_done and transcript.errors == []
    pieces = [
        choice["delta"].get("content") or ""
        for event in transcript.events
        for choice in event["choices"]
    ]
    return "".join(pieces), transcript.finish_reasons


@dataclass(slots=True)
class Meanwhile:
    texts: list[tuple[str, list[str]]] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)


@contextlib.asynccontextmanager
async def meanwhile(product: RunningProduct) -> AsyncIterator[Meanwhile]:
    """Another client streams, one after the other, and health is asked for, until the end."""
    found, is_over = Meanwhile(), asyncio.Event()

    async def talk() -> None:
        while not is_over.is_set():
            found.texts.append(await text_of(product))

    def poll() -> None:
        # In a thread: what this loop sends is megabytes, which would be waited for as well.
        with httpx.Client(base_url=product.origin, timeout=30) as http:
            while not is_over.is_set():
                began_s = time.monotonic()
                assert http.get("/healthz").status_code == 200
                found.waits_s.append(time.monotonic() - began_s)
                time.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        group.create_task(talk())
        group.create_task(asyncio.to_thread(poll))
        try:
            yield found
        finally:
            is_over.set()


async def test_hostile_bodies_are_refused_and_nobody_else_notices(product: RunningProduct) -> None:
    requests = corpus(product.model)
    chat = {"model": product.model, "messages": HI, "max_tokens": 1}
    alone = await text_of(product)
    # Once before memory is measured: what compiling needs stays with the process.
    await send_all(product, requests, Report())
    before = product.engine()
    engine = psutil.Process(before.pid)
    rss_bytes = engine.memory_info().rss
    report = Report()
    async with meanwhile(product) as others, slow_connections(product, chat):
        while len(others.waits_s) < N_POLLS or not others.texts:
            await send_all(product, requests, report)
    after = product.engine()
    grown_bytes = engine.memory_info().rss - rss_bytes
    p99_s = sorted(others.waits_s)[int(len(others.waits_s) * 0.99)]
    print(
        f"{report.n_sent} hostile bodies of {len(requests)} kinds beside {N_SLOW} slow "
        f"connections: each answered within {report.slowest_s:.2f} s ({report.slowest}); "
        f"/healthz p99 {p99_s * 1000:.0f} ms over "
        f"{len(others.waits_s)} polls; {len(others.texts)} streams beside them as alone; "
        f"the engine grew by {grown_bytes / 2**20:.0f} MiB"
    )
    assert not report.wrong, "\n".join(report.wrong)
    assert len(requests) > 100
    assert report.slowest_s < MAX_REFUSAL_S
    assert others.texts and set(map(str, others.texts)) == {str(alone)}
    assert p99_s < MAX_HEALTHZ_P99_S
    assert (after.pid, after.epoch, after.state) == (before.pid, before.epoch, before.state)
    assert grown_bytes < MAX_GROWTH_BYTES
    assert product.n_open_usage_rows() == 0
