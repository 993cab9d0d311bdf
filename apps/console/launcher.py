"""Runs the processes of the embedded default as one: the engine agent, the server, Celery's workers
and beat. They come up together, each is started again when it ends by itself, and after a signal
all go down in order. An agent or a server that ends before there was an answer ends everything."""

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
    """The house cannot be opened; the message is for the operator."""


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
    """One run of the house. ``run`` returns after an orderly stop and raises LaunchError where it
    cannot be opened; in both cases no child is left."""

    def __init__(
        self, options: LaunchOptions, *, report: Report, banner: Callable[[str], str]
    ) -> None:
        self._options = options
        self._report = report
        self._banner = banner
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        descriptor = options.listener.fileno()
        self._agent = self._keeper("agent", "manage.py", "run_engines")
        self._server = self._keeper(
            "server", "-m", "config.server", "--fd", str(descriptor), pass_fds=(descriptor,)
        )
        self._workers = (
            self._keeper("worker", "-m", "config.worker", "worker"),
            self._keeper("beat", "-m", "config.worker", "beat"),
        )
        # Nothing is to be watched before the house is open, which it would delay.
        self._watcher = self._keeper("watcher", "-m", "config.worker", "watcher")

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        try:
            await self._start()
            await self._opened()
            for keeper in (self._agent, self._server):
                keeper.keep()
            if not self._stop.is_set():
                await self._watcher.start()
                self._watcher.keep()
            await self._stop.wait()
        finally:
            await self._close()

    async def _start(self) -> None:
        listener = self._options.listener
        try:
            listener.listen(1024)
        except OSError as error:
            raise LaunchError(f"port {self._options.port} cannot be used: {error}") from error
        for keeper in (self._agent, self._server, *self._workers):
            await keeper.start()
        for keeper in self._workers:
            keeper.keep()

    async def _opened(self) -> None:
        """Return once the house was opened or is to stop; raises LaunchError when a child that it
        cannot be opened without ends before."""
        opening = asyncio.create_task(self._open())
        others = [
            asyncio.create_task(wait)
            for wait in (self._stop.wait(), self._agent.ended(), self._server.ended())
        ]
        await asyncio.wait({opening, *others}, return_when=asyncio.FIRST_COMPLETED)
        for task in (opening, *others):
            task.cancel()  # one that is done takes no notice
        if opening.done():
            opening.result()
        elif not self._stop.is_set():
            raise LaunchError(self._obituary())

    def _keeper(self, name: str, *command: str, pass_fds: tuple[int, ...] = ()) -> Keeper:
        spawn = partial(self._spawn, name, *command, "--exit-with-parent", pass_fds=pass_fds)
        return Keeper(name, spawn=spawn, report=self._report)

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
        self._options.listener.close()  # else who comes while the server drains waits for nobody
        agent = await self._agent.let_go()
        keepers = (self._server, self._watcher, *self._workers)
        doors = [await keeper.let_go() for keeper in keepers]
        grace_s = self._options.drain_s + _STOP_MARGIN_S
        await asyncio.gather(*(self._end(child, grace_s=grace_s) for child in doors if child))
        if agent is not None:
            await self._end(agent, grace_s=grace_s + _STOP_MARGIN_S)

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

    def _obituary(self) -> str:
        """Which child ended before there was an answer, and its last words."""
        agent = self._agent.child
        ended = "agent" if agent and agent.returncode is not None else "server"
        log = self._log(ended)
        words = "\n".join(f"  {line}" for line in log_tail(log, n_lines=10))
        return f"the {ended} ended by itself, so everything stops. End of {log}:\n{words}"

    def _log(self, name: str) -> Path:
        return self._options.var_dir / "logs" / f"{name}.log"
