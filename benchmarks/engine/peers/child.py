"""A process that a benchmark runs: started once, stopped in its tracks while others run."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx
import psutil

# One line carries all answers of a turn.
MAX_LINE_BYTES = 2**27
STOP_TIMEOUT_S = 30.0
_POLL_S = 0.2


class Unavailable(Exception):
    """A system cannot be measured here; says why."""


class Child:
    """A process and all its descendants; what it says goes to ``log``."""

    def __init__(self, process: asyncio.subprocess.Process, *, name: str, log: Path) -> None:
        self._process = process
        self._name = name
        self._log = log

    @classmethod
    async def start(
        cls, command: Sequence[str | Path], *, log: Path, env: Mapping[str, str], speaks: bool
    ) -> Self:
        """Start a process. speaks: its stdin and stdout are pipes, for ``ask``."""
        words = [str(word) for word in command]
        pipe = asyncio.subprocess.PIPE if speaks else None
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=pipe or asyncio.subprocess.DEVNULL,
                stdout=pipe or output,
                stderr=output,
                env=dict(env),
                limit=MAX_LINE_BYTES,
                start_new_session=True,
            )
        # Its name alone: what failed is kept with the results, where no machine's paths belong.
        return cls(process, name=Path(words[0]).name, log=log)

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    async def say(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        await self._process.stdin.drain()

    async def hear(self) -> bytes:
        """Return its next line. Raises Unavailable if it ended instead."""
        assert self._process.stdout is not None
        if line := await self._process.stdout.readline():
            return line
        raise self.fault("ended")

    async def wait_until_healthy(self, url: str, *, timeout_s: float) -> None:
        """Wait until a GET answers 200. Raises Unavailable."""
        async with httpx.AsyncClient(timeout=5) as client:
            for _ in range(int(timeout_s / _POLL_S)):
                if not self.is_running:
                    raise self.fault("did not start")
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(url)).status_code == 200:
                        return
                await asyncio.sleep(_POLL_S)
        await self.stop()
        raise self.fault(f"was not ready within {timeout_s:.0f} s")

    def fault(self, what: str) -> Unavailable:
        """Describe what went wrong, with the last that the process said about it."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line]
        errors = [line for line in lines if "error" in line.lower()]
        said = (errors or lines or ["nothing"])[-1][:500]
        return Unavailable(f"{self._name}: {what}; it said: {said.strip()}")

    def pause(self) -> None:
        """Stop it in its tracks, so that it costs the others nothing."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        for process in reversed(self.family()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    async def stop(self) -> None:
        """End it and what it started. Idempotent."""
        family = self.family()
        self.resume()
        if self.is_running:
            self._process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await self._process.wait()

    def family(self) -> list[psutil.Process]:
        """Return the process and its descendants, parents first."""
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
