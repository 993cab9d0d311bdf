"""Two processes that hold a model together sleep and wake together, whatever one of them lacks."""

import os
import random
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine_service.__main__ import give_back_memory
from engine_service.backends.native import NativeBackend
from engine_service.errors import EngineError, EngineLost, Overloaded
from engine_service.runner import tensor_parallel
from engine_service.runner.common_memory import CommonMemory
from engine_service.runner.device_memory import DeviceMemory
from tests.integration.engine import rank_in_need
from tests.integration.engine.backend import run, tokens, with_noise
from tests.integration.engine.test_sleep import (
    fall_asleep,
    is_full,
    make_request,
    n_held_bytes,
    small_pieces,
)
from tests.integration.engine.test_tensor_parallel import config_of, prompts_of, two_ranks
from tests.models import random_llama_dir
from tests.parity import run_backend
from tests.waiting import wait_until

__all__ = ["small_pieces"]  # a fixture, of all tests here: rank 0's pieces are more than rank 1's


def sleeping(**settings: Any) -> dict[str, Any]:
    return {"sleep_after_s": 1000.0, "kv_cache_tokens": 512, **settings}


def held_by_rank_1(backend: NativeBackend) -> Any:
    memory = backend._memory
    assert isinstance(memory, CommonMemory)
    return memory._held[1]


def rank_process(backend: NativeBackend) -> psutil.Process:
    assert backend._ranks is not None
    (rank,) = backend._ranks._ranks
    return psutil.Process(rank.process.pid)


@pytest.mark.parametrize("has_draft_model", [False, True])
def test_the_same_tokens_before_and_after_as_one_process(
    tmp_path: Path, has_draft_model: bool
) -> None:
    model_dir = random_llama_dir(tmp_path)
    settings = sleeping()
    prompts = prompts_of(random.Random(7))
    n_tokens = [16] * len(prompts)
    alone = NativeBackend(config_of(model_dir, **settings))
    expected = run_backend(alone)(prompts, n_tokens)
    fall_asleep(alone)
    if has_draft_model:
        settings["draft_model_dir"] = with_noise(model_dir, tmp_path)
    with two_ranks(model_dir, **settings) as backend:
        generate = run_backend(backend)
        assert generate(prompts, n_tokens) == expected
        assert fall_asleep(backend) > 3
        saved = backend.stats().saved_bytes
        assert saved > alone.stats().saved_bytes, "each has the whole embedding"
        for _ in range(2):
            stats = backend.stats()
            assert (stats.is_asleep, stats.is_given_back) == (True, True)
            assert stats.n_blocks_cached == 0
            assert held_by_rank_1(backend).is_given_back
            assert generate(prompts, n_tokens) == expected
            assert held_by_rank_1(backend).is_there
            assert not backend.stats().is_asleep
            assert fall_asleep(backend) == 1
            assert backend.stats().saved_bytes == saved


def test_a_purge_while_they_sleep_leaves_nothing_and_disturbs_nothing(tmp_path: Path) -> None:
    with two_ranks(random_llama_dir(tmp_path), **sleeping()) as backend:
        before = tokens(run(backend, make_request(0))[0])
        fall_asleep(backend)
        assert backend.purge("tenant") == 0
        outputs = run(backend, make_request(0))[0]
        assert (tokens(outputs), outputs[-1].n_cached_tokens) == (before, 0)
        assert backend.purge("tenant") == 3
        fall_asleep(backend)
        backend.add(make_request(0))
        backend.step()
        assert not backend.stats().is_given_back
        assert backend.purge("tenant") == 0, "while they wake"
        backend.abort(0)
        backend.step()
        assert not backend.rest()
        assert held_by_rank_1(backend).is_given_back


def test_the_memory_of_both_is_the_machines_again(tmp_path: Path) -> None:
    """By what the operating system says of them."""
    model_dir = random_llama_dir(tmp_path, hidden_size=512, intermediate_size=2048)
    settings = sleeping(kv_cache_tokens=100_000)
    with two_ranks(model_dir, **settings) as backend:
        before = tokens(run(backend, make_request(0))[0])
        backend.rest()
        while backend._turn._memory.save_next():  # type: ignore[union-attr]
            pass
        runner: Any = backend._runner
        pool_bytes = runner._model.pool.tensor.nbytes
        weight_bytes = backend.stats().saved_bytes // 2
        assert pool_bytes + weight_bytes > 50 * 2**20
        awake = resident_bytes(backend)
        fall_asleep(backend)
        asleep = resident_bytes(backend)
        for found, kept in zip(awake, asleep, strict=True):
            assert found - kept > 0.9 * (pool_bytes + weight_bytes)
        assert tokens(run(backend, make_request(0))[0]) == before
        for found, kept in zip(resident_bytes(backend), asleep, strict=True):
            assert found - kept > 0.9 * (pool_bytes + weight_bytes)


def resident_bytes(backend: NativeBackend) -> tuple[int, int]:
    assert backend._ranks is not None
    # Other tests of this process may have left room in its heap, in which the pool then stood.
    give_back_memory()
    return psutil.Process(os.getpid()).memory_info().rss, backend._ranks.resident_bytes()


@pytest.fixture
def need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that makes rank 1 fail."""
    file = tmp_path / "need"
    monkeypatch.setenv(rank_in_need.VARIABLE, str(file))
    monkeypatch.setattr(tensor_parallel, "_MODULE", rank_in_need.MODULE)
    return file


def test_what_one_of_them_lacks_neither_takes(
    tmp_path: Path, need: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_ranks(random_llama_dir(tmp_path), **sleeping()) as backend:
        before = tokens(run(backend, make_request(0))[0])
        held = n_held_bytes(backend)

        need.write_text("no host memory")
        with pytest.raises(EngineError, match=r"cannot be kept: MemoryError") as found:
            fall_asleep(backend)
        assert not isinstance(found.value, EngineLost)
        assert tokens(run(backend, make_request(0))[0]) == before, "they can work"
        need.unlink()
        fall_asleep(backend)

        need.write_text("no device memory")
        assert_refused(backend)
        need.unlink()
        assert tokens(run(backend, make_request(0))[0]) == before
        assert n_held_bytes(backend) == held
        fall_asleep(backend)

        with monkeypatch.context() as patch:
            patch.setattr(DeviceMemory, "_bytes", is_full)
            assert_refused(backend)
        assert tokens(run(backend, make_request(0))[0]) == before
        assert held_by_rank_1(backend).is_there


def assert_refused(backend: NativeBackend) -> None:
    """A wake that finds no memory refuses who waits, and leaves all of it to others."""
    backend.add(make_request(0))
    backend.add(make_request(1, n=2))
    refused = backend.step()
    while not refused:
        assert not backend.stats().is_given_back
        refused = backend.step()
    assert {output.key for output in refused} == {0, 1}
    assert all(isinstance(output.error, Overloaded) for output in refused)
    assert not backend.has_work()
    assert backend.stats().is_given_back
    assert n_held_bytes(backend) == 0
    assert held_by_rank_1(backend).is_given_back


def test_what_else_fails_on_a_rank_ends_the_engine_and_is_said(tmp_path: Path, need: Path) -> None:
    with two_ranks(random_llama_dir(tmp_path), **sleeping()) as backend:
        lost: list[EngineLost] = []
        backend.watch(lost.append)
        fall_asleep(backend)
        need.write_text("boom")
        started_s = time.monotonic()
        with pytest.raises(EngineLost, match="rank 1 failed: boom"):
            run(backend, make_request(0))
        wait_until("the loss", lambda: lost, timeout_s=2.0)
        assert str(lost[0]) == "rank 1 failed: boom"
        assert time.monotonic() - started_s < 5.0


def test_a_rank_killed_while_they_sleep_or_wake_is_noticed_at_once(tmp_path: Path) -> None:
    with two_ranks(random_llama_dir(tmp_path), **sleeping()) as backend:
        lost: list[EngineLost] = []
        backend.watch(lost.append)
        fall_asleep(backend)
        backend.add(make_request(0))
        backend.step()
        assert lost == [], "an answer is not an end"
        started_s = time.monotonic()
        rank_process(backend).kill()
        wait_until("the loss", lambda: lost, timeout_s=2.0)
        assert str(lost[0]) == "rank 1 ended: killed by SIGKILL"
        with pytest.raises(EngineLost, match="rank 1 ended: killed by SIGKILL"):
            backend.step()
        assert time.monotonic() - started_s < 5.0
