"""Engines of an earlier agent as the system shows them: processes with a socket on their command
line, and sockets in a directory."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from apps.engines.orphans import ServingProcess, orphans_end, orphans_left, processes_serving
from apps.engines.policy import Timings
from tests.waiting import wait_until

HANGING = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    for name in ("e1-1.sock", "e1-2.sock", "e2-7.sock", "notes"):
        (directory / name).touch()
    return directory


@pytest.fixture
def hanging(run_dir: Path) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """What looks like an engine of this directory, like one that is about to make its socket, and
    like one of another directory."""
    paths = [run_dir / "e1-2.sock", run_dir / "e3-1.sock", run_dir.parent / "running" / "e1-2.sock"]
    with ExitStack() as stack:
        found = [
            stack.enter_context(subprocess.Popen([sys.executable, "-c", HANGING, str(path)]))
            for path in paths
        ]
        for process in found:
            stack.callback(process.kill)
        for process, path in zip(found, paths, strict=True):
            # A program runs some milliseconds before the system shows its command line.
            command_line = Path(f"/proc/{process.pid}/cmdline")
            wait_until("a command line", partial(_has_word, command_line, os.fsencode(path)))
        yield found


def _has_word(command_line: Path, word: bytes) -> bool:
    return word in command_line.read_bytes().split(b"\0")


def test_what_serves_is_found_and_what_nobody_serves_goes(
    run_dir: Path, hanging: list["subprocess.Popen[bytes]"]
) -> None:
    ours = {
        ServingProcess(pid=hanging[0].pid, socket_path=run_dir / "e1-2.sock"),
        ServingProcess(pid=hanging[1].pid, socket_path=run_dir / "e3-1.sock"),
    }
    assert set(processes_serving(run_dir)) == ours
    assert {path.name for path in run_dir.iterdir()} >= {"e1-1.sock", "e2-7.sock"}
    assert set(orphans_left(run_dir)) == ours
    assert {path.name for path in run_dir.iterdir()} == {"e1-2.sock", "notes"}


def test_those_that_do_not_end_are_killed_and_no_others(
    run_dir: Path, hanging: list["subprocess.Popen[bytes]"]
) -> None:
    reused = ServingProcess(pid=hanging[2].pid, socket_path=run_dir / "e2-7.sock")
    orphans = [*processes_serving(run_dir), reused]
    asyncio.run(orphans_end(orphans, timings=Timings(stop_grace_s=0.3)))
    assert [process.wait(10) for process in hanging[:2]] == [-signal.SIGKILL] * 2
    assert hanging[2].poll() is None
    assert {path.name for path in run_dir.iterdir()} == {"e1-1.sock", "notes"}
