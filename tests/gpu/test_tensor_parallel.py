"""Several GPUs give the tokens that one does; and where there is only one, what goes over NCCL can
be recorded in a graph for a group of one, which is all of it that one GPU can show."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from tests.models import ROOT, random_model_dir
from tests.parity import Prompt, compare, reference_answers, run_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

# In a process of its own, which ends by force: NCCL waits for graphs that hold its sums.
ONE_RANK = """
import os, torch
from engine_service.models.shard import Shard
from engine_service.runner.collectives import Collectives
from engine_service.runner.decode_graphs import CudaGraphApi
device = torch.device("cuda", 0)
group = Collectives(Shard(0, 1), rendezvous=os.memfd_create("rendezvous"), device=device)
x = torch.ones(64, 128, dtype=torch.bfloat16, device=device)
group.share(x)
graphs = CudaGraphApi()
add, total = graphs.record(lambda: group.reduce(x * 2))
put_together, parts = graphs.record(lambda: group.gather(x * 3))
x.fill_(3)
add()
put_together()
print("sum", total.unique().tolist(), "parts", parts.unique().tolist(), flush=True)
os._exit(0)
"""


def test_what_goes_over_nccl_is_recorded_in_a_graph() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONE_RANK], cwd=ROOT, capture_output=True, text=True, timeout=90
    )
    assert "sum [6.0] parts [9.0]" in done.stdout, done.stderr[-2000:]


needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees one GPU here")


def prompts_of(rng: random.Random) -> list[Prompt]:
    return [tuple(rng.randrange(320) for _ in range(n)) for n in (1, 2, 15, 16, 17, 33, 90)]


@needs_two
def test_two_gpus_equal_transformers(tmp_path: Path) -> None:
    model_dir = random_model_dir(tmp_path, "qwen3", head_dim=64)
    prompts = prompts_of(random.Random(7))
    answers = reference_answers(model_dir, prompts=prompts, n_tokens=24)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # as is the default, which the other rank has
    backend = NativeBackend(
        EngineConfig(
            model_dir=model_dir,
            device="cuda",
            dtype="float32",
            kv_cache_tokens=2048,
            max_sequences=8,
            tensor_parallel=2,
        )
    )
    assert backend._ranks is not None
    try:
        report = compare(answers, run_backend(backend))
    finally:
        backend._ranks.close()
        torch.set_float32_matmul_precision(before)
    print(backend.info.kernels, report)
    assert report.differences == []


@needs_two
def test_two_gpus_give_their_memory_back_and_their_graphs_come_back(tmp_path: Path) -> None:
    """The graphs have NCCL's sums in them, and are recorded anew on both at once."""
    prompts = prompts_of(random.Random(7))
    backend = NativeBackend(
        EngineConfig(
            model_dir=random_model_dir(tmp_path, "qwen3", head_dim=64),
            device="cuda",
            kv_cache_tokens=2_000_000,
            max_sequences=8,
            tensor_parallel=2,
            sleep_after_s=1.0,
        )
    )
    assert backend._ranks is not None
    try:
        runner: Any = backend._runner
        pool_bytes = runner._model.pool.tensor.nbytes
        assert pool_bytes > 2**29
        generate = run_backend(backend)
        before = generate(prompts, [24] * len(prompts))
        for _ in range(3):
            awake = free_bytes()
            while backend.rest():
                pass
            assert backend.stats().is_given_back
            for left, found in zip(awake, free_bytes(), strict=True):
                assert found - left >= pool_bytes
            assert generate(prompts, [24] * len(prompts)) == before
    finally:
        backend._ranks.close()


def free_bytes() -> list[int]:
    """Of each GPU, also what other processes gave back there."""
    return [torch.cuda.mem_get_info(i)[0] for i in range(2)]
