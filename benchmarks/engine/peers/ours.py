"""Our engine process, driven over its socket by the platform's own client."""

import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from apps.engines.client import EngineClient, SamplingParams, TokenPrompt
from apps.engines.exceptions import EngineClientError
from benchmarks.engine.peers.child import Child
from benchmarks.engine.peers.system import Answer
from benchmarks.runners import socket_runner
from benchmarks.workload import Job, timelines_of
from engine_service import protocol

START_TIMEOUT_S = 120.0


@dataclass(slots=True, kw_only=True)
class OurEngine:
    """options: for the engine's command line."""

    name: str
    how: str
    levels: tuple[int, ...]
    model_dir: Path
    options: tuple[str, ...]
    log: Path
    _child: Child | None = None
    _client: EngineClient | None = None
    _socket_dir: "tempfile.TemporaryDirectory[str]" = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="engine-")
    )

    async def start(self) -> None:
        command = [sys.executable, "-m", "engine_service", "--model", str(self.model_dir)]
        command += ["--socket", str(self.socket), "--epoch", "1", *self.options]
        child = self._child = await Child.start(command, log=self.log, env=os.environ, speaks=False)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not self.socket.exists():
                    if not child.is_running:
                        raise child.fault("did not start")
                    await asyncio.sleep(0.1)
            self._client = EngineClient(str(self.socket), name="benchmark")
            info = await self._client.connect()
        except (TimeoutError, EngineClientError) as error:
            raise child.fault(f"did not answer ({error})") from error
        self.how = f"{info.dtype}, {info.kernels} kernels, {self.how}"

    @property
    def socket(self) -> Path:
        return Path(self._socket_dir.name) / "engine.sock"

    async def run(self, jobs: list[Job], *, concurrency: int) -> list[Answer]:
        assert self._client is not None
        runner = socket_runner(self._client)
        timelines = await timelines_of(runner, jobs, concurrency=concurrency)
        return [Answer(timeline, None) for timeline in timelines]

    def pause(self) -> None:
        if self._child is not None:
            self._child.pause()

    def resume(self) -> None:
        if self._child is not None:
            self._child.resume()

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()
        if self._child is not None:
            await self._child.stop()
        self._socket_dir.cleanup()


async def greedy_token_ids(socket: Path, jobs: list[Job]) -> list[tuple[int, ...]]:
    """Answer jobs together and return their tokens, which the platform's client does not tell."""
    reader, writer = await asyncio.open_unix_connection(str(socket), limit=2**24)

    async def read() -> protocol.FromEngine:
        length = protocol.frame_length(await reader.readexactly(protocol.HEADER.size))
        return protocol.decode_from_engine(await reader.readexactly(length))

    def write(message: protocol.ToEngine) -> None:
        writer.write(protocol.encode_frame(message))

    write(protocol.Hello(protocol_version=protocol.PROTOCOL_VERSION, client="benchmark"))
    await read()
    sampling = SamplingParams(temperature=0.0, ignore_eos=True, logprobs=0)
    for index, job in enumerate(jobs):
        prompt = TokenPrompt(token_ids=job.prompt)
        write(protocol.Prepare(request_id=str(index), prompt=prompt, sampling=sampling))
    found: list[list[int]] = [[] for _ in jobs]
    n_left = len(jobs)
    while n_left:
        message = await read()
        if isinstance(message, protocol.Prepared):
            job = jobs[int(message.request_id)]
            write(protocol.Start(request_id=message.request_id, max_new_tokens=job.n_new))
        elif isinstance(message, protocol.StepOutputs):
            parts: tuple[protocol.Delta | protocol.Finished, ...]
            parts = (*message.deltas, *message.finished)
            for part in parts:
                found[int(part.request_id)] += [entry.token_id for entry in part.logprobs]
            n_left -= len(message.finished)
            if message.failed:
                raise RuntimeError(message.failed[0].error.message)
        else:
            raise RuntimeError(f"unexpected: {message}")
    writer.close()
    return [tuple(ids) for ids in found]
