"""Engines that outlived their agent, and the sockets that such engines leave. Both are looked for
on this machine: an agent may be killed before a row knows of what it has started. No database."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apps.engines.paths import socket_remove, sockets_in
from apps.engines.policy import Timings

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.2
_GONE_WITHIN_S: Final = 10.0  # of being killed; the system may hold a process for ever
_SOCKET_SUFFIX: Final = b".sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingProcess:
    pid: int
    socket_path: Path


def processes_serving(run_dir: Path) -> list[ServingProcess]:
    """Return what serves, or is about to serve, a socket there: it is known by the path on its
    command line."""
    prefix = os.fsencode(run_dir) + b"/"
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        for word in _words(file):
            if word.startswith(prefix) and word.endswith(_SOCKET_SUFFIX):
                found.append(
                    ServingProcess(pid=int(file.parent.name), socket_path=Path(os.fsdecode(word)))
                )
    return found


def orphans_left(run_dir: Path) -> list[ServingProcess]:
    """Return the engines of an agent that was killed, and remove the sockets that nobody serves any
    more. Only for an agent that has started nothing yet, and holds the lock of its VAR."""
    orphans = processes_serving(run_dir)
    for path in sockets_in(run_dir):
        if path not in {each.socket_path for each in orphans}:
            socket_remove(path)
    return orphans


async def orphans_end(orphans: Collection[ServingProcess], *, timings: Timings) -> None:
    """Wait for engines of an agent that was killed: they drain by themselves; kill those that do
    not, and return once none is left, or what is left cannot be ended."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timings.stop_grace_s
    left = list(orphans)
    while left and loop.time() < deadline + _GONE_WITHIN_S:
        if loop.time() >= deadline:
            for each in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)
        await asyncio.sleep(_POLL_S)
        gone = [each for each in left if not _serves(each)]
        for each in gone:
            socket_remove(each.socket_path)
        left = [each for each in left if each not in gone]
    for each in left:
        logger.error("The engine of an earlier agent cannot be ended: pid %d", each.pid)


def _serves(process: ServingProcess) -> bool:
    """Whether it lives still; a pid that was used again is let be."""
    path = Path(f"/proc/{process.pid}/cmdline")
    return os.fsencode(process.socket_path) in _words(path)


def _words(command_line: Path) -> list[bytes]:
    """Of a process of this user; nothing of another's, or of one that has ended."""
    try:
        if command_line.stat().st_uid != os.geteuid():
            return []
        return command_line.read_bytes().split(b"\0")
    except OSError:
        return []
