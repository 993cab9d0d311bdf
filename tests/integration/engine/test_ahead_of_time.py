"""What a GPU would launch, compiled for it without one: by Triton and NVIDIA's assembler, in a
process of its own, since here Triton interprets."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.ahead import ENGINES
from tests.processes import ROOT


def run_python(*words: str, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
    }
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def compiled(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    words = ["tests.integration.engine.engine_compiled", str(tmp_path / "model"), "H200"]
    done = run_python(*words, json.dumps(settings), tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(found: dict[str, Any]) -> None:
    assert found["n_answers"] == 140
    assert len(found["rehearsed"]) > 25  # weights of eight bits have fewer
    assert found["compiled_when_made_ready"] == []
    assert found["compiled_when_serving"] == []
    assert found["too_large"] == []


def test_what_is_rehearsed_is_all_that_is_launched(tmp_path: Path) -> None:
    """So no request waits for a compiler, and kernels are compiled while weights are read."""
    check(compiled(tmp_path))


def check_steps(tmp_path: Path, *words: str, n_engines: int) -> None:
    done = run_python("tests.integration.engine.steps_noted", *words, tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == n_engines
    for engine in found.values():
        assert engine["n_rehearsed"] > 35
        assert engine["surprises"] == []


def test_random_steps_of_real_sizes_launch_nothing_else(tmp_path: Path) -> None:
    """Seven query heads share a K/V head of Qwen2.5-7B: few new tokens of a row make another
    kernel."""
    engines = ("qwen3-0.6b", "qwen3-0.6b int8", "qwen3-0.6b float32", "qwen2.5-7b")
    check_steps(tmp_path, "60", "H200", *engines, n_engines=4)


@pytest.mark.prove
@pytest.mark.parametrize("gpu", ["A100", "L40S", "H200", "B200"])
def test_so_it_is_of_every_engine(tmp_path: Path, gpu: str) -> None:
    engines = [name for name in ENGINES if "fp8" not in name or gpu != "A100"]
    check_steps(tmp_path, "400", gpu, *engines, n_engines=len(engines))


@pytest.mark.prove
@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "float32"},
        {"quantization": "int8"},
        {"quantization": "fp8", "kv_cache_dtype": "fp8"},
        {"max_sequences": 7, "max_batched_tokens": 100},
    ],
    ids=str,
)
def test_so_it_is_in_other_numbers(tmp_path: Path, settings: dict[str, Any]) -> None:
    check(compiled(tmp_path, **settings))


def check_engines(tmp_path: Path, *words: str) -> None:
    output = tmp_path / "ahead.json"
    done = run_python("benchmarks.gpu.ahead", "--output", str(output), *words, tmp_path=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_engine_fits_a_gpu_of_little_shared_memory(tmp_path: Path) -> None:
    check_engines(tmp_path, "--gpus", "L40S", "--engines", "qwen3-0.6b int8")


@pytest.mark.prove
@pytest.mark.timeout(3000)
def test_every_engine_fits_every_gpu(tmp_path: Path) -> None:
    """Or refuses the numbers that a GPU lacks."""
    check_engines(tmp_path)
