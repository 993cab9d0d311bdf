"""A backend that gave its memory back takes it again for the next request, and answers the same.

With torch's kernels on the processor, where the host's copy is a copy like any other.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine_service.backends.base import EngineRequest, SequenceOutput
from engine_service.backends.native import NativeBackend
from engine_service.engine import Engine
from engine_service.errors import ModelError, Overloaded
from engine_service.protocol import EngineStats, SamplingParams
from engine_service.runner.device_memory import DeviceMemory, tensors_in
from tests.integration.engine.backend import make_backend, run, tokens
from tests.models import random_llama_dir
from tests.waiting import wait_until

N_TOKENS = 12
# Small, or changed by steps; what ``_few_rows`` has else is the weights again.
STAYS = ("_tables", "last_draws", "_few_rows", "_no_top_k", "_all_of_p", "_no_min_p")
PIECE_BYTES = 50_001  # of the weights' 400,000: tensors are cut anywhere


def make_sleeper(model_dir: Path, **settings: Any) -> NativeBackend:
    return make_backend(
        model_dir, **{"device": "cpu", "kernels": "torch", "sleep_after_s": 0.05, **settings}
    )


def make_request(key: int, **sampling: Any) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=tuple((11 * key + 7 * i) % 250 for i in range(40)),
        sampling=SamplingParams(temperature=0.0, ignore_eos=True, **sampling),
        max_new_tokens=N_TOKENS,
        cache_tags=("tenant",),
    )


def fall_asleep(backend: NativeBackend) -> int:
    """Return in how many parts it did."""
    n_parts = 1
    while backend.rest():
        n_parts += 1
    assert backend.stats().is_asleep
    return n_parts


def memory_of(backend: NativeBackend) -> DeviceMemory:
    memory = backend._memory
    assert memory is not None
    return memory


def n_held_bytes(backend: NativeBackend) -> int:
    """Bytes of all tensors of its model, those aside that stay, and of its pool."""
    model: Any = backend._runner._model  # type: ignore[attr-defined]
    parts = {**vars(model), "pool": (model.pool.tensor, *model.pool.layers)}
    for name in STAYS:
        del parts[name]
    return sum(
        tensor.untyped_storage().nbytes() for part in parts.values() for tensor in tensors_in(part)
    )


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    original = DeviceMemory.__init__

    def with_small_pieces(self: DeviceMemory, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs, piece_bytes=PIECE_BYTES)

    monkeypatch.setattr(DeviceMemory, "__init__", with_small_pieces)
    yield


@pytest.mark.parametrize(
    "settings",
    [{}, {"dtype": "bfloat16"}, {"quantization": "int8"}, {"quantization": "fp8"}],
    ids=str,
)
def test_the_same_tokens_after_waking_as_before(model_dir: Path, settings: dict[str, Any]) -> None:
    backend = make_sleeper(model_dir, **settings)
    requests = [make_request(0), make_request(1, seed=3), make_request(2, n=2)]
    before = {key: tokens(found) for key, found in run(backend, *requests).items()}
    held = n_held_bytes(backend)
    assert backend.stats().saved_bytes == 0
    assert fall_asleep(backend) > 3
    saved = backend.stats().saved_bytes
    assert saved > 0
    assert n_held_bytes(backend) == 0
    assert backend.stats().n_blocks_cached == 0
    for _ in range(2):  # the second time nothing is copied to the host any more
        assert {key: tokens(found) for key, found in run(backend, *requests).items()} == before
        assert n_held_bytes(backend) == held
        assert backend.stats().saved_bytes == saved
        assert not backend.stats().is_asleep
        assert fall_asleep(backend) == 1


def test_the_output_layer_may_be_another_than_the_embedding(tmp_path: Path) -> None:
    backend = make_sleeper(random_llama_dir(tmp_path, tie_word_embeddings=False))
    before = tokens(run(backend, make_request(0))[0])
    fall_asleep(backend)
    assert tokens(run(backend, make_request(0))[0]) == before


def test_a_request_while_falling_asleep_is_computed_at_once(model_dir: Path) -> None:
    backend = make_sleeper(model_dir)
    before = tokens(run(backend, make_request(0))[0])
    assert backend.rest()
    assert not backend.stats().is_asleep
    assert tokens(run(backend, make_request(0))[0]) == before
    fall_asleep(backend)
    assert tokens(run(backend, make_request(0))[0]) == before


def test_the_pool_is_overwritten_before_it_is_given_back_and_comes_back_empty(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_sleeper(model_dir)
    run(backend, make_request(0))
    pool: Tensor = backend._runner._model.pool.tensor  # type: ignore[attr-defined]
    assert pool.any()
    given_up = []
    original = DeviceMemory._give_up

    def give_up(self: DeviceMemory) -> None:
        given_up.append(pool.clone())
        original(self)

    monkeypatch.setattr(DeviceMemory, "_give_up", give_up)
    fall_asleep(backend)
    assert not given_up[0].any()
    memory = memory_of(backend)
    while not memory.is_there:
        memory.take_next()
    assert pool.numel()
    assert not pool.any()


def test_nothing_is_found_of_what_was_cached(model_dir: Path) -> None:
    backend = make_sleeper(model_dir)
    run(backend, make_request(0))
    assert run(backend, make_request(0))[0][-1].n_cached_tokens == 32
    fall_asleep(backend)
    assert run(backend, make_request(0))[0][-1].n_cached_tokens == 0


def test_what_the_tiers_keep_they_keep(model_dir: Path) -> None:
    """Blocks that were evicted come back from host memory, into the pool that is there now."""
    backend = make_sleeper(model_dir, kv_cache_tokens=96, host_kv_cache_bytes=2**20)
    alone = {key: tokens(run(backend, make_request(key))[key]) for key in range(4)}
    fall_asleep(backend)
    outputs = run(backend, make_request(0))[0]
    assert outputs[-1].n_cached_tokens == 32
    assert tokens(outputs) == alone[0]
    fall_asleep(backend)
    assert backend.purge("tenant") > 0
    outputs = run(backend, make_request(1))[1]
    assert outputs[-1].n_cached_tokens == 0
    assert tokens(outputs) == alone[1]


def test_an_abort_while_waking_is_reported_and_the_others_run(model_dir: Path) -> None:
    backend = make_sleeper(model_dir)
    before = tokens(run(backend, make_request(1))[1])
    fall_asleep(backend)
    backend.add(make_request(0))
    assert backend.step() == []
    assert backend.stats().is_asleep
    assert not memory_of(backend).is_given_back
    backend.abort(0)
    (output,) = backend.step()
    assert (output.key, output.finish_reason) == (0, "abort")
    assert not backend.has_work()
    assert tokens(run(backend, make_request(1))[1]) == before


def test_who_woke_in_vain_sleeps_again(model_dir: Path) -> None:
    backend = make_sleeper(model_dir)
    fall_asleep(backend)
    backend.add(make_request(0))
    backend.step()
    assert n_held_bytes(backend) > 0
    backend.abort(0)
    backend.step()
    assert not backend.rest()
    assert n_held_bytes(backend) == 0
    assert len(tokens(run(backend, make_request(0))[0])) == N_TOKENS


@pytest.mark.parametrize("n_parts_before", [0, 2])
def test_without_memory_requests_are_refused_and_the_next_one_tries_again(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, n_parts_before: int
) -> None:
    backend = make_sleeper(model_dir)
    before = tokens(run(backend, make_request(0))[0])
    fall_asleep(backend)
    backend.add(make_request(0))
    backend.add(make_request(1, n=2))
    for _ in range(n_parts_before):
        assert backend.step() == []
    with monkeypatch.context() as patch:
        patch.setattr(DeviceMemory, "_check_free", is_full)
        patch.setattr(DeviceMemory, "_bytes", is_full)
        refused = backend.step()
        while not refused:
            refused = backend.step()
    assert {output.key for output in refused} == {0, 1}
    assert all(isinstance(output.error, Overloaded) for output in refused)
    assert not backend.has_work()
    assert n_held_bytes(backend) == 0
    stats = backend.stats()
    assert (stats.is_asleep, stats.n_waiting, stats.n_failed) == (True, 0, 2)
    assert tokens(run(backend, make_request(0))[0]) == before


def is_full(*_: Any) -> Tensor:
    raise torch.OutOfMemoryError("another engine has it")


def test_in_the_loop_it_sleeps_and_wakes_by_itself_and_answers_pings_meanwhile(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_sleeper(model_dir)
    before = tokens(run(backend, make_request(0))[0])
    outputs: list[SequenceOutput] = []
    engine = Engine(backend, on_outputs=outputs.extend, max_inbox=8, sleep_after_s=0.05)
    seen: list[EngineStats] = []
    original = DeviceMemory.take_next

    def take_and_be_pinged(self: DeviceMemory) -> None:
        original(self)
        engine.ping(seen.append)  # each answer comes before the next part, or it is late

    monkeypatch.setattr(DeviceMemory, "take_next", take_and_be_pinged)
    engine.start()
    try:
        wait_until("it to sleep", lambda: memory_of(backend).is_given_back)
        purged: list[int] = []
        engine.purge("tenant", purged.append)
        wait_until("the purge's answer", lambda: purged == [0])
        engine.submit(make_request(0))
        wait_until("the answer", lambda: any(output.finish_reason for output in outputs))
        assert [stats.is_asleep for stats in seen] == [True] * (len(seen) - 1) + [False]
        assert len(seen) > 3
        assert tokens(outputs) == before
        wait_until("it to sleep again", lambda: memory_of(backend).is_given_back)
    finally:
        started_s = time.monotonic()
        assert engine.stop(timeout_s=10)
    assert time.monotonic() - started_s < 1.0


def test_a_failure_while_waking_leaves_the_request_for_another_try(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not for lack of memory the loop meets as a step that failed, and goes on."""
    backend = make_sleeper(model_dir)
    before = tokens(run(backend, make_request(0))[0])
    fall_asleep(backend)
    outputs: list[SequenceOutput] = []
    failures = iter([ValueError("boom")])
    original = DeviceMemory._check_free

    def check_free(self: DeviceMemory) -> None:
        for failure in failures:
            raise failure
        original(self)

    monkeypatch.setattr(DeviceMemory, "_check_free", check_free)
    engine = Engine(backend, on_outputs=outputs.extend, max_inbox=8)
    engine.start()
    engine.submit(make_request(0))
    wait_until("the answer", lambda: any(output.finish_reason for output in outputs))
    assert engine.stop(timeout_s=10)
    assert tokens(outputs) == before


def test_an_engine_that_does_not_sleep_keeps_no_second_copy(model_dir: Path) -> None:
    backend = make_sleeper(model_dir, sleep_after_s=None)
    assert backend._memory is None
    assert not backend.rest()
    assert not backend.stats().is_asleep


def test_the_processors_kernels_refuse_it_by_name(model_dir: Path) -> None:
    with pytest.raises(ModelError, match="sleep_after_s is for a GPU's kernels"):
        make_sleeper(model_dir, kernels="auto")
