"""Runs the GPU tests with pytest alone: neither Django nor any plug-in of pytest is needed."""

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.processes import run_python, tail

ROOT: Final = Path(__file__).resolve().parents[2]
# Apart, since the one may set Triton up differently than the other wants it.
FOLDERS: Final = ("tests/unit/engine/kernels", "tests/gpu")
_SUMMARY: Final = re.compile(r"^=*\s*((?:\d+ \w+(?:, )?)+ in [\d.]+s.*?)\s*=*$")
_COUNT: Final = re.compile(r"(\d+) (passed|failed|skipped|error|errors|xfailed|xpassed)\b")


def run_tests(*, timeout_s: float, env: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Run each folder's tests in the time; return counts, and ``failed`` unless all is well."""
    found: dict[str, Any] = {"passed": 0, "failed_tests": 0, "skipped": 0, "took_s": 0.0}
    faults = []
    for tests in FOLDERS:
        if not (ROOT / tests).is_dir():
            faults.append(f"{tests} is not there")
            continue
        log = folder / f"{tests.replace('/', '-')}.log"
        left_s = max(1.0, timeout_s - found["took_s"])
        status, took_s = run_python(_words(tests), timeout_s=left_s, env=env, log=log)
        found["took_s"] = round(found["took_s"] + took_s, 1)
        summary = summary_of(log.read_text(errors="replace"))
        for name, n in counts_of(summary).items():
            found[name] = found.get(name, 0) + n
        if status != 0:
            faults.append(f"{tests}: {'ran out of time' if status is None else summary}")
            print(tail(log, n_lines=60), flush=True)
        print(f"{tests}: {summary}", flush=True)
    if faults:
        found["failed"] = "; ".join(faults)
    elif not found["passed"]:
        found["failed"] = "no test ran"
    return found


def summary_of(output: str) -> str:
    """Return pytest's last line about all tests."""
    found = [match[1] for line in output.splitlines() if (match := _SUMMARY.match(line.strip()))]
    return found[-1] if found else "no summary"


def counts_of(summary: str) -> dict[str, int]:
    """Return how many passed, failed (errors among them) and were skipped."""
    counts = {"passed": 0, "failed_tests": 0, "skipped": 0}
    for n, name in _COUNT.findall(summary):
        if name in counts:
            counts[name] += int(n)
        elif name in {"failed", "error", "errors"}:
            counts["failed_tests"] += int(n)
    return counts


def _words(tests: str) -> list[str]:
    """Tests' own conftest.py files count, but not that of ``tests``, which needs Django."""
    words = ["-m", "pytest", "-q", "-m", "", "-c", "benchmarks/gpu/pytest.ini", "--rootdir", "."]
    words += ["-p", "no:cacheprovider", "--confcutdir", "tests/gpu"]
    # Most of the time goes into compiling kernels, which processes do side by side.
    n_workers = min(8, (os.cpu_count() or 1) // 2)
    if n_workers > 1 and importlib.util.find_spec("xdist") is not None:
        words += ["-n", str(n_workers)]
    return [*words, "-p", "no:django", "--durations=5", tests]
