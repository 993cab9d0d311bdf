"""A lean streaming client: on two cores a full HTTP library would take the time that the server
needs, and its cost would be booked on the wrong side."""

import asyncio
import json
from typing import Protocol

from benchmarks.workload import Job, Timeline


class Server(Protocol):
    """Where a server of OpenAI's API listens, and what it calls the model."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def model(self) -> str: ...
    @property
    def api_token(self) -> str: ...


async def stream_completion(server: Server, job: Job, timeline: Timeline) -> None:
    """Stream ``/v1/completions`` over a connection of its own and note each token's arrival.

    Raises:
        RuntimeError: the server answered anything but a whole stream.
    """
    body = json.dumps(
        {
            "model": server.model,
            "prompt": job.prompt,
            "max_tokens": job.n_new,
            "temperature": 0,
            "seed": job.seed,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(
        (
            f"POST /v1/completions HTTP/1.1\r\nHost: {server.host}\r\n"
            f"Authorization: Bearer {server.api_token}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode()
        + body
    )
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r} {await reader.read(2000)!r}")
    n_total = n_seen = 0
    done = False
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            done = True
            break
        event = json.loads(line[6:])
        if "error" in event:
            raise RuntimeError(event["error"]["message"])
        if event.get("usage"):
            n_total = event["usage"]["completion_tokens"]
        elif event["choices"]:
            # One event a step; speculation-free steps carry one token each.
            timeline.saw(1)
            n_seen += 1
    writer.close()
    if not done:
        raise RuntimeError("the stream ended without [DONE]")
    if n_total > n_seen:
        timeline.saw(n_total - n_seen)
    elif n_seen > n_total and timeline.arrivals:
        del timeline.arrivals[n_total:]
