"""The command that measures on a GPU runs from end to end without one, on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.timeout(180)
def test_runs_end_to_end_without_a_gpu(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--output", str(output)]
    command += ["--parts", "roofline,single", "--wheels", str(tmp_path), "--peers", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text())
    assert result["roofline"]["rates"]["flop_per_s"] > 0
    assert result["ours"]["1 stream"]["n_tokens"] == 512 // 16
    assert 0 < result["derived"]["1 stream"]["roofline_share"] < 1
    assert done.stdout.splitlines()[-1].startswith("NOT MET: a single stream's ITL")


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu", "--parts", "roofline"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "torch sees no GPU here" in done.stderr
