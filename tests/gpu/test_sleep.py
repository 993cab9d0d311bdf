"""On a GPU, an engine that sleeps gives its memory to others, and answers the same afterwards."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.errors import Overloaded
from engine_service.protocol import SamplingParams
from tests.integration.engine.backend import run, tokens
from tests.models import random_llama_dir

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

N_TOKENS = 40
# Of two layers, each two K/V heads of 64 float32: 2 KiB a token.
POOL_TOKENS = 2**20
POOL_BYTES = POOL_TOKENS * 2 * 2 * 2 * 64 * 4
# What a part of falling asleep or waking may take: the agent waits five seconds for a pong.
MAX_PART_S = 2.5


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama_dir(tmp_path_factory.mktemp("model"), head_dim=64)


@pytest.fixture
def backend(model_dir: Path) -> Iterator[NativeBackend]:
    made = make_backend(model_dir)
    yield made
    fall_asleep(made)  # what a failed test leaves alive takes nothing from the next one


def make_backend(model_dir: Path) -> NativeBackend:
    return NativeBackend(
        EngineConfig(
            model_dir=model_dir,
            device="cuda",
            dtype="float32",
            kv_cache_tokens=POOL_TOKENS,
            max_sequences=8,
            max_batched_tokens=64,
            sleep_after_s=1.0,
        )
    )


def make_requests() -> list[EngineRequest]:
    """Six: a batch that decodes in a graph of eight."""
    return [
        EngineRequest(
            key=key,
            prompt_token_ids=tuple((11 * key + 7 * i) % 250 for i in range(20 + key)),
            sampling=SamplingParams(temperature=0.0, ignore_eos=True),
            max_new_tokens=N_TOKENS,
        )
        for key in range(6)
    ]


def answers(backend: NativeBackend) -> dict[int, list[int]]:
    return {key: tokens(found) for key, found in run(backend, *make_requests()).items()}


def fall_asleep(backend: NativeBackend) -> None:
    is_more = True
    while is_more:
        started_s = time.perf_counter()
        is_more = backend.rest()
        assert time.perf_counter() - started_s < MAX_PART_S
    assert backend.stats().is_asleep


def free_bytes() -> int:
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    return free


def test_memory_goes_back_to_the_driver_and_tokens_are_the_same(backend: NativeBackend) -> None:
    before = answers(backend)
    awake = free_bytes()
    asleep: list[int] = []
    for _ in range(3):
        fall_asleep(backend)
        asleep.append(free_bytes())
        assert asleep[-1] - awake >= POOL_BYTES
        assert answers(backend) == before
        assert not backend.stats().is_asleep
    # What no sleep gives back is not more each time.
    assert asleep[-1] >= asleep[0] - 64 * 2**20


def test_every_part_of_waking_is_short(backend: NativeBackend) -> None:
    fall_asleep(backend)
    backend.add(make_requests()[0])
    n_parts = 0
    while backend.stats().is_asleep:
        started_s = time.perf_counter()
        assert backend.step() == []
        assert time.perf_counter() - started_s < MAX_PART_S
        n_parts += 1
    assert n_parts > 3
    while backend.has_work():
        backend.step()


def test_another_engine_has_the_memory_meanwhile(backend: NativeBackend, model_dir: Path) -> None:
    """Two take turns; what one leaves in its pool the other never reads."""
    before = answers(backend)
    fall_asleep(backend)
    other = make_backend(model_dir)
    for _ in range(2):
        assert answers(other) == before
        fall_asleep(other)
        assert answers(backend) == before
        fall_asleep(backend)


def test_without_memory_requests_are_refused_and_the_next_one_tries_again(
    backend: NativeBackend,
) -> None:
    before = answers(backend)
    fall_asleep(backend)
    asleep = free_bytes()
    others = torch.empty(asleep - POOL_BYTES // 2, dtype=torch.uint8, device="cuda")
    outputs = run(backend, *make_requests())
    assert all(isinstance(found[-1].error, Overloaded) for found in outputs.values())
    assert len(outputs) == 6
    del others
    torch.cuda.empty_cache()
    assert free_bytes() >= asleep - 64 * 2**20
    assert answers(backend) == before
