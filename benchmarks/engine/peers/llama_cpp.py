"""llama.cpp's own server, over its streaming HTTP API."""

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine.peers.child import Child
from benchmarks.engine.peers.system import Answer
from benchmarks.workload import Job, Timeline, timelines_of
from tests.serve import free_port

START_TIMEOUT_S = 120.0
HOST = "127.0.0.1"


@dataclass(slots=True, kw_only=True)
class LlamaCpp:
    """n_sequences: most jobs under way, each of at most ``max_model_len`` tokens."""

    name: str
    how: str
    levels: tuple[int, ...]
    server: Path
    model: Path
    n_sequences: int
    max_model_len: int
    log: Path
    _child: Child | None = None
    _port: int = 0

    async def start(self) -> None:
        self._port = free_port()
        threads = str(os.cpu_count())
        command: list[str | Path] = [
            self.server,
            "--model",
            self.model,
            "--host",
            HOST,
            "--port",
            str(self._port),
        ]
        command += ["--parallel", str(self.n_sequences), "--threads", threads]
        command += ["--ctx-size", str(self.n_sequences * self.max_model_len)]
        command += ["--threads-batch", threads, "--no-webui"]
        self._child = await Child.start(command, log=self.log, env=os.environ, speaks=False)
        health = f"http://{HOST}:{self._port}/health"
        await self._child.wait_until_healthy(health, timeout_s=START_TIMEOUT_S)

    async def run(self, jobs: list[Job], *, concurrency: int) -> list[Answer]:
        token_ids: dict[int, list[int] | None] = {}

        async def run(job: Job, timeline: Timeline) -> None:
            token_ids[id(timeline)] = await self._stream(job, timeline)

        timelines = await timelines_of(run, jobs, concurrency=concurrency)
        found = [(timeline, token_ids[id(timeline)]) for timeline in timelines]
        return [Answer(timeline, ids and tuple(ids)) for timeline, ids in found]

    async def _stream(self, job: Job, timeline: Timeline) -> list[int] | None:
        """Stream one completion; return its tokens, None where the server kept some back.

        A token that ends within a character is counted by the server and never sent.
        """
        body = {
            "prompt": job.prompt,
            "n_predict": job.n_new,
            "temperature": 0,
            "samplers": ["temperature"],
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": True,
        }
        content = json.dumps(body).encode()
        head = f"POST /completion HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        reader, writer = await asyncio.open_connection(HOST, self._port)
        writer.write(head.encode() + content)
        token_ids: list[int] = []
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"llama.cpp: {status!r} {await reader.read(2000)!r}")
        async for line in reader:
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line[6:])
            if event["tokens"]:
                timeline.saw(len(event["tokens"]))
                token_ids += event["tokens"]
            if event["stop"]:
                break
        writer.close()
        if n_unsent := event["tokens_predicted"] - len(token_ids):
            timeline.saw(n_unsent)
        return None if n_unsent else token_ids

    def pause(self) -> None:
        if self._child is not None:
            self._child.pause()

    def resume(self) -> None:
        if self._child is not None:
            self._child.resume()

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop()
