"""An engine in a Python environment of its own, asked over lines of JSON.

It says once ``{"version": ...}``. Then each ``{"concurrency": n, "jobs": [{"prompt": ids,
"n_new": n}, ...]}`` is answered by ``{"answers": [{"started_s": t, "arrivals": [[t, n_tokens],
...], "token_ids": ids}, ...]}`` in the order of the jobs; times are of time.perf_counter.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.engine.peers.child import Child
from benchmarks.engine.peers.system import Answer
from benchmarks.workload import Job, Timeline


class _Ready(msgspec.Struct, frozen=True):
    version: str


class _Answer(msgspec.Struct, frozen=True):
    started_s: float
    arrivals: list[tuple[float, int]]
    token_ids: tuple[int, ...]


class _Answers(msgspec.Struct, frozen=True):
    answers: list[_Answer]


@dataclass(slots=True, kw_only=True)
class LineSystem:
    name: str
    how: str
    levels: tuple[int, ...]
    command: Sequence[str | Path]
    log: Path
    env: Mapping[str, str]
    start_timeout_s: float
    _child: Child | None = None

    async def start(self) -> None:
        self._child = await Child.start(self.command, log=self.log, env=self.env, speaks=True)
        try:
            async with asyncio.timeout(self.start_timeout_s):
                ready = msgspec.json.decode(await self._child.hear(), type=_Ready)
        except TimeoutError as error:
            what = f"was not ready within {self.start_timeout_s:.0f} s"
            raise self._child.fault(what) from error
        self.how = f"{ready.version}, {self.how}"

    async def run(self, jobs: list[Job], *, concurrency: int) -> list[Answer]:
        assert self._child is not None
        turn = {
            "concurrency": concurrency,
            "jobs": [{"prompt": job.prompt, "n_new": job.n_new} for job in jobs],
        }
        await self._child.say(msgspec.json.encode(turn))
        found = msgspec.json.decode(await self._child.hear(), type=_Answers)
        return [
            Answer(Timeline(answer.started_s, list(answer.arrivals)), answer.token_ids)
            for answer in found.answers
        ]

    def pause(self) -> None:
        if self._child is not None:
            self._child.pause()

    def resume(self) -> None:
        if self._child is not None:
            self._child.resume()

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop()
