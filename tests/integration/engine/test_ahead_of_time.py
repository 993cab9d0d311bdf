"""What a GPU would launch, compiled for it without one: by Triton and NVIDIA's assembler, in a
process of its own, since here Triton interprets."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT

pytest.importorskip("triton")


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
    assert len(found["rehearsed"]) > 30
    assert found["compiled_when_made_ready"] == []
    assert found["compiled_when_serving"] == []
    assert found["too_large"] == []


def test_what_is_rehearsed_is_all_that_is_launched(tmp_path: Path) -> None:
    """So no request waits for a compiler, and kernels are compiled while weights are read."""
    check(compiled(tmp_path))


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


@pytest.mark.prove
@pytest.mark.timeout(3000)
def test_every_engine_compiles_for_every_gpu(tmp_path: Path) -> None:
    """What lacks the numbers of an engine refuses them: no kernel fails to compile, and each fits
    the GPU's shared memory."""
    output = tmp_path / "ahead.json"
    done = run_python("benchmarks.gpu.ahead", "--output", str(output), tmp_path=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
