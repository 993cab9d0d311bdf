"""Runs the processes of the embedded default as one: the engine agent and the server, which come up
together, and when one of them ends or a signal comes, all go down in order; and Celery's worker and
beat, which are started again when they end."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from apps.console.bootstrap import Access
from apps.console.keeper import Keeper
from apps.console.opening import wait_until_open
from apps.core.files import log_open, log_tail

Report = Callable[[str], None]

_STOP_MARGIN_S: Final = 10.0


class LaunchError(Exception):
    """The house cannot be opened or did not stay open; the message is for the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """listener: bound, not yet listening. drain_s: what the server and the engines are given."""

    listener: socket.socket
    host: str
    port: int
    access: Access
    var_dir: Path
    root_dir: Path
    drain_s: float


def port_claim(host: str, port: int) -> socket.socket:
    """Bind the port before anything else is done; connections are refused until it listens.

    Raises:
        LaunchError: it is taken, or not this machine's to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise LaunchError(
            f"port {port} on {host} cannot be used: {error.strerror}. "
            "Stop what uses it, or choose another: make serve PORT=9000"
        ) from error
    return listener


class Launcher:
    """One run of the house. ``run`` returns after an orderly stop and raises LaunchError after a
    disorderly one; in both cases no child is left."""

    def __init__(
        self, options: LaunchOptions, *, report: Report, banner: Callable[[str], str]
    ) -> None:
        self._options = options
        self._report = report
        self._banner = banner
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._agent: asyncio.subprocess.Process | None = None
        self._server: asyncio.subprocess.Process | None = None
        self._keepers = tuple(
            Keeper(name, spawn=partial(self._spawn, name, *command), report=report)
            for name, command in (
                ("worker", ("-m", "config.worker", "worker", "--exit-with-parent")),
                ("beat", ("-m", "config.worker", "beat", "--exit-with-parent")),
            )
        )

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        try:
            await self._start()
            tasks = {
                asyncio.create_task(self._stop.wait()),
                *(asyncio.create_task(child.wait()) for child in self._children()),
            }
            opening = asyncio.create_task(self._open())
            await asyncio.wait({opening, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                opening.result()
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in (opening, *tasks):
                task.cancel()
            if not self._stop.is_set():
                raise LaunchError(self._obituary())
        finally:
            await self._close()

    async def _start(self) -> None:
        listener = self._options.listener
        try:
            listener.listen(1024)
        except OSError as error:
            raise LaunchError(f"port {self._options.port} cannot be used: {error}") from error
        self._agent = await self._spawn("agent", "manage.py", "run_engines", "--exit-with-parent")
        descriptor = listener.fileno()
        command = ("-m", "config.server", "--fd", str(descriptor), "--exit-with-parent")
        self._server = await self._spawn("server", *command, pass_fds=(descriptor,))
        listener.close()  # the server's copy lives on, and ends with it
        for keeper in self._keepers:
            await keeper.start()

    async def _spawn(
        self, name: str, *arguments: str, pass_fds: tuple[int, ...] = ()
    ) -> asyncio.subprocess.Process:
        root = self._options.root_dir
        log = log_open(self._log(name))
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                cwd=root,
                env={
                    **os.environ,
                    "VAR": str(self._options.var_dir),
                    "PYTHONPATH": os.pathsep.join((str(root), str(root / "platform"))),
                },
                stdin=asyncio.subprocess.PIPE,  # it closes when we die, however we die
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
                start_new_session=True,  # Ctrl-C is for us: we stop them in order
            )
        finally:
            os.close(log)

    async def _open(self) -> None:
        """Wait until a client gets an answer, then say so."""
        options = self._options
        model = await wait_until_open(
            host=options.host,
            port=options.port,
            token=options.access.api_token,
            report=self._report,
        )
        self._report(self._banner(model))

    async def _close(self) -> None:
        """Let the server end its streams and the worker its lines, then the engines; kill what does
        not end in time."""
        doors = [self._server, *[await keeper.let_go() for keeper in self._keepers]]
        grace_s = self._options.drain_s + _STOP_MARGIN_S
        await asyncio.gather(*(self._end(child, grace_s=grace_s) for child in doors if child))
        if self._agent is not None:
            await self._end(self._agent, grace_s=grace_s + _STOP_MARGIN_S)
        with contextlib.suppress(OSError):
            self._options.listener.close()

    async def _end(self, child: asyncio.subprocess.Process, *, grace_s: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        ended = asyncio.create_task(child.wait())
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({ended, hurry}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not ended.done():  # a second SIGTERM asks the agent and the server to end at once
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            await asyncio.wait({ended}, timeout=_STOP_MARGIN_S / 2)
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        await ended

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        else:
            self._report("Stopping: running requests may finish (again to stop at once)")
        self._stop.set()

    def _children(self) -> list[asyncio.subprocess.Process]:
        return [child for child in (self._agent, self._server) if child is not None]

    def _obituary(self) -> str:
        """Which child ended by itself, and its last words."""
        ended = "agent" if self._agent and self._agent.returncode is not None else "server"
        log = self._log(ended)
        words = "\n".join(f"  {line}" for line in log_tail(log, n_lines=10))
        return f"the {ended} ended by itself, so everything stops. End of {log}:\n{words}"

    def _log(self, name: str) -> Path:
        return self._options.var_dir / "logs" / f"{name}.log"
