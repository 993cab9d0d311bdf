"""Runs a process that measures, for a time that is bounded, and collects what it found."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

N_SAID = 400  # characters of a fault that are kept


def run_python(
    words: Sequence[str], *, timeout_s: float, env: Mapping[str, str], log: Path
) -> tuple[int | None, float]:
    """Run ``python words``; return its exit status, None if its time ran out, and the seconds.

    Whatever it started ends with it.
    """
    started_s = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return status, time.perf_counter() - started_s


def measure(
    module: str, options: Sequence[str], *, timeout_s: float, env: Mapping[str, str], folder: Path
) -> dict[str, Any]:
    """Run one of this package's measuring modules; return its figures, and ``failed`` with the
    reason if it did not come to its end."""
    output, log = folder / f"{module}.json", folder / f"{module}.log"
    words = ["-m", f"benchmarks.gpu.{module}", "--output", str(output), *options]
    status, took_s = run_python(words, timeout_s=timeout_s, env=env, log=log)
    found: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    found["took_s"] = round(took_s, 1)
    if status is None:
        found["failed"] = f"its {timeout_s:.0f} s ran out"
    elif status:
        found["failed"] = last_fault(log)
    return found


def last_fault(log: Path) -> str:
    """Return what a process said of its fault: its last line that is no frame of a traceback."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    faults = [line for line in lines if not line.startswith(" ") and "rror" in line]
    return (faults or lines or ["it said nothing"])[-1].strip()[:N_SAID]


def tail(log: Path, *, n_lines: int) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-n_lines:])
