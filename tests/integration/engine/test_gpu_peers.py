"""What stands beside the engine on a GPU runs on a processor too, on a tiny model: transformers'
continuous batching, in the process and the time that the benchmark gives it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.gpu import drive_transformers, report
from benchmarks.gpu.child import Child
from benchmarks.gpu.workload import SMALL, workloads

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("1 stream", "8 streams", "64 streams", "nano-vllm")


@pytest.mark.timeout(240)
def test_transformers_gives_the_tokens_that_were_asked_for(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--output", str(output)]
    command += ["--parts", "roofline,peers", "--wheels", str(tmp_path), "--peers", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=230,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())["transformers"]
    known = workloads(SMALL)
    assert {name: found[name]["n_tokens"] for name in NAMES} == {
        name: known[name].n_new_tokens for name in NAMES
    }
    assert all(found[name]["tokens_per_s"] > 0 for name in NAMES)


class Manager:
    """A manager of transformers' that answers the first so many requests."""

    def __init__(self, n_answers: int) -> None:
        self._left = n_answers
        self._due: list[int] = []

    def add_request(self, input_ids: list[int], *, max_new_tokens: int, **_: Any) -> None:
        self._due.append(max_new_tokens)

    def get_result(self, timeout: float) -> Any:
        if not self._left:
            return None
        self._left -= 1
        tokens = [1] * self._due.pop(0)
        return SimpleNamespace(error=None, generated_tokens=tokens, is_finished=lambda: True)

    def is_running(self) -> bool:
        return True


def test_what_does_not_end_in_time_is_left_out_and_the_rest_is_kept(tmp_path: Path) -> None:
    known = workloads(SMALL)
    output = tmp_path / "out.json"
    has_ended = drive_transformers.run_all(
        Manager(n_answers=1),
        [known[name] for name in ("1 stream", "64 streams", "nano-vllm")],
        deadline_s=time.monotonic() + 0.3,
        child=Child(output),
    )
    assert not has_ended
    found = json.loads(output.read_text())
    assert found["1 stream"]["n_tokens"] == known["1 stream"].n_new_tokens
    assert found["64 streams"] == {"left_out": "0 of 4 requests ended in time"}
    assert found["nano-vllm"] == {"left_out": "the time went into 64 streams"}
    result = {"workloads": {name: {} for name in found}, "transformers": found, "derived": {}}
    assert report.table(result).splitlines()[-2:] == [
        "left out transformers, 64 streams: 0 of 4 requests ended in time",
        "left out transformers, nano-vllm: the time went into 64 streams",
    ]


def test_another_number_of_tokens_is_an_error() -> None:
    class Short(Manager):
        def add_request(self, input_ids: list[int], *, max_new_tokens: int, **options: Any) -> None:
            super().add_request(input_ids, max_new_tokens=max_new_tokens - 1, **options)

    with pytest.raises(RuntimeError, match="31 tokens came, 32 were due"):
        drive_transformers.run(
            Short(n_answers=1), workloads(SMALL)["1 stream"], deadline_s=float("inf")
        )


def test_a_version_without_continuous_batching_is_named() -> None:
    model = SimpleNamespace(continuous_batching_context_manager=None)
    assert drive_transformers.lacking(model) is None
    reason = drive_transformers.lacking(SimpleNamespace())
    assert reason is not None
    assert reason.endswith("has no continuous batching (continuous_batching_context_manager)")
    result = {"transformers": {"left_out": reason}}
    assert report.table(result).splitlines()[-1] == f"left out transformers: {reason}"
