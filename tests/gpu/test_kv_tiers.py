"""On a GPU, blocks leave the pool for pinned memory and come back while steps overlap."""

from pathlib import Path

import pytest
import torch

from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.protocol import SamplingParams
from engine_service.runner.kv_tiers import BlockPool, KVTiers
from tests.integration.engine.backend import run, tokens
from tests.models import random_llama_dir

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

N_TOKENS = 40


def make_backend(model_dir: Path, *, host_bytes: int) -> NativeBackend:
    return NativeBackend(
        EngineConfig(
            model_dir=model_dir,
            device="cuda",
            dtype="float32",
            kv_cache_tokens=16 * 16,
            max_sequences=8,
            max_batched_tokens=64,
            host_kv_cache_bytes=host_bytes,
        )
    )


def make_request(key: int) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=tuple((11 * key + 7 * i) % 250 for i in range(70)),
        sampling=SamplingParams(temperature=0.0, ignore_eos=True),
        max_new_tokens=N_TOKENS,
    )


def test_answers_are_the_same_with_tiers_and_prefixes_come_back(tmp_path: Path) -> None:
    """Six that never fit together, twice: preempted in company, and found again."""
    model_dir = random_llama_dir(tmp_path, head_dim=64)
    plain = make_backend(model_dir, host_bytes=0)
    alone = {key: tokens(run(plain, make_request(key))[key]) for key in range(6)}
    tiered = make_backend(model_dir, host_bytes=64 * 2**20)
    for _ in range(2):
        outputs = run(tiered, *map(make_request, range(6)))
        assert {key: tokens(found) for key, found in outputs.items()} == alone
    stats = tiered.stats()
    assert stats.tiers is not None
    assert stats.tiers.n_spilled > 0
    assert stats.tiers.n_host_hits >= 8
    assert stats.n_preemptions > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_come_back_bit_by_bit_through_pinned_memory(dtype: torch.dtype) -> None:
    pool = torch.randn((4, 2, 70, 2, 16, 64), device="cuda").to(dtype)
    before = pool.clone()
    store = KVTiers(BlockPool(pool, dim=2), n_host_slots=80, disk=None)
    store.spill([(block, 79 - block) for block in range(70)])
    pool.fill_(float("nan"))
    store.load([(79 - block, block) for block in range(70)])
    assert torch.equal(pool, before)
    store.erase_host(range(80))
    store.load([(slot, slot) for slot in range(70)])
    assert not pool.any()
