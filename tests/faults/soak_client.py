"""The clients of a soak: many at a time, and a log of everything that each of them saw."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx

from tests.serve import RunningProduct

# An idle stream sends a comment every 15 s; a whole answer may wait for its turn.
READ_TIMEOUT_S = 150.0
PAUSE_S = 1.0


class End(StrEnum):
    """How an attempt ended, as its client saw it."""

    COMPLETED = "completed"  # a whole answer, or a stream up to its [DONE]
    ERROR_EVENT = "error event"  # a stream that said what was wrong, and [DONE]
    REFUSED = "refused"  # another status than 200
    UNREACHED = "unreached"  # no connection
    CUT = "cut"  # the connection ended before the answer did
    SILENT = "silent"  # nothing came for the time that a client waits
    ENDLESS = "endless"  # the body was over and its stream was not: no [DONE]


@dataclass(slots=True)
class Attempt:
    """One request as it was sent once. tag: its ``user``, by which the ledger's row is found.

    request_id: of the header, where the status was 200. n_prompt, n_completion: the usage that the
    client was told. n_seen: tokens that it got, by their logprobs. Times are of ``time.monotonic``.
    """

    tag: str
    is_stream: bool
    began_s: float
    ended_s: float = 0.0
    status: int | None = None
    request_id: str = ""
    end: End = End.UNREACHED
    error: dict[str, Any] = field(default_factory=dict)
    retry_after: str | None = None
    n_prompt: int | None = None
    n_completion: int | None = None
    n_seen: int = 0
    finish_reason: str | None = None

    @property
    def has_begun(self) -> bool:
        return self.status == 200

    def take(self, data: dict[str, Any]) -> None:
        """Note what a chunk or a whole answer says."""
        assert data["id"] == self.request_id
        for choice in data["choices"]:
            logprobs = choice.get("logprobs")
            self.n_seen += len(logprobs["content"]) if logprobs else 0
            self.finish_reason = choice["finish_reason"] or self.finish_reason
        if usage := data.get("usage"):
            self.n_prompt, self.n_completion = usage["prompt_tokens"], usage["completion_tokens"]


@dataclass(slots=True)
class Clients:
    """``n_requests``, ``n_at_once`` at a time, every other one streamed. What was refused or never
    begun is sent again, as another attempt, until it is answered or lost under way."""

    product: RunningProduct
    secret: str
    n_requests: int
    n_at_once: int
    attempts: list[Attempt] = field(default_factory=list)
    n_done: int = 0

    async def run(self) -> None:
        numbers = iter(range(self.n_requests))
        limits = httpx.Limits(max_connections=None)
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=10)
        headers = {"Authorization": f"Bearer {self.secret}"}
        base_url = self.product.base_url
        async with (
            httpx.AsyncClient(
                base_url=base_url, headers=headers, timeout=timeout, limits=limits
            ) as http,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(self.n_at_once):
                group.create_task(self._client(http, numbers))

    async def _client(self, http: httpx.AsyncClient, numbers: Iterator[int]) -> None:
        for number in numbers:
            turn = 0
            while True:
                attempt = await self._attempt(http, number=number, turn=turn)
                self.attempts.append(attempt)
                if attempt.end not in (End.REFUSED, End.UNREACHED):
                    break
                turn += 1
                await asyncio.sleep(PAUSE_S)
            self.n_done += 1

    async def _attempt(self, http: httpx.AsyncClient, *, number: int, turn: int) -> Attempt:
        is_stream = number % 2 == 0
        tag = f"soak-{number}-{turn}"
        attempt = Attempt(tag=tag, is_stream=is_stream, began_s=time.monotonic())
        try:
            await _send(http, body_of(self.product, number, attempt), attempt)
        except httpx.ConnectError:
            attempt.end = End.UNREACHED
        except httpx.TimeoutException:
            attempt.end = End.SILENT
        except httpx.TransportError:
            attempt.end = End.CUT
        attempt.ended_s = time.monotonic()
        return attempt


def body_of(product: RunningProduct, number: int, attempt: Attempt) -> dict[str, Any]:
    """Return a short question; its answer has from 4 to 11 tokens."""
    body: dict[str, Any] = {
        "model": product.model,
        "messages": [{"role": "user", "content": f"Say something about the number {number}."}],
        "max_tokens": 4 + number % 8,
        "ignore_eos": True,
        "logprobs": True,
        "user": attempt.tag,
        "stream": attempt.is_stream,
    }
    if attempt.is_stream:
        body["stream_options"] = {"include_usage": True}
    return body


async def _send(http: httpx.AsyncClient, body: dict[str, Any], attempt: Attempt) -> None:
    async with http.stream("POST", "/chat/completions", json=body) as answer:
        attempt.status = answer.status_code
        attempt.request_id = answer.headers["x-request-id"] if attempt.has_begun else ""
        if not attempt.has_begun:
            attempt.end = End.REFUSED
            attempt.retry_after = answer.headers.get("retry-after")
            attempt.error = json.loads(await answer.aread())["error"]
        elif not attempt.is_stream:
            attempt.end = End.CUT  # unless the body is whole
            attempt.take(json.loads(await answer.aread()))
            attempt.end = End.COMPLETED
        else:
            attempt.end = End.ENDLESS
            await _read(answer, attempt)


async def _read(answer: httpx.Response, attempt: Attempt) -> None:
    async for line in answer.aiter_lines():
        assert attempt.end == End.ENDLESS or not line, f"{line!r} after the end"
        if line == "data: [DONE]":
            attempt.end = End.ERROR_EVENT if attempt.error else End.COMPLETED
        elif line.startswith("data: "):
            data = json.loads(line.removeprefix("data: "))
            if "error" in data:
                attempt.error = data["error"]
            else:
                attempt.take(data)
