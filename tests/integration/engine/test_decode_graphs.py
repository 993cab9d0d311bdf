"""Decode steps through recorded graphs give the tokens of steps without; torch's own graph API is
the only thing that is stood in for, since it needs a GPU."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.protocol import SamplingParams
from engine_service.runner.decode_graphs import DecodeGraphs, graph_sizes
from engine_service.runner.device_runner import DeviceRunner
from engine_service.runner.step_packing import PackedStep, is_decode
from engine_service.scheduling.batch import Batch
from tests.integration.engine.backend import make_backend, run_answers, tokens
from tests.integration.engine.test_speculation import guess_from

BLOCK_SIZE = 16


class FakeGraphs:
    """Repeats a computation into the tensor that it returned when it was recorded, as a graph does.

    recorded, replayed: numbers of rows.
    """

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.replayed: list[int] = []

    @torch.inference_mode()
    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        result = torch.full_like(compute(), float("nan"))
        n_rows = len(result)
        self.recorded.append(n_rows)

        @torch.inference_mode()
        def replay() -> None:
            self.replayed.append(n_rows)
            result.copy_(compute())

        return replay, result


def on_device(model_dir: Path, **settings: Any) -> NativeBackend:
    wanted = {"device": "cpu", "kernels": "torch", "prefill_slowdown": None, **settings}
    return make_backend(model_dir, **wanted)


def with_graphs(
    model_dir: Path, *, sizes: list[int] | None = None, **settings: Any
) -> tuple[NativeBackend, FakeGraphs]:
    """Return a backend with graphs as on a GPU; what is not computed yet is poisoned."""
    backend = on_device(model_dir, **settings)
    runner: Any = backend._runner
    api, model = FakeGraphs(), runner._model
    sizes = graph_sizes(backend.info.max_sequences) if sizes is None else sizes
    model.pool.tensor.fill_(float("nan"))
    model._tables.fill_(10**6)
    model.last_draws.fill_(10**6)
    graphs = DecodeGraphs(model.decode_and_draw, sizes=sizes, device=model.device, api=api)
    runner._graphs = runner._steps._graphs = graphs
    return backend, api


def make_requests(n: int) -> list[EngineRequest]:
    """Of different lengths, so that the batch becomes smaller row by row."""
    return [
        EngineRequest(
            key=key,
            prompt_token_ids=tuple(range(key, key + 5 + 7 * key)),
            sampling=SamplingParams(
                temperature=0.9 if key % 2 else 0.0, seed=key, ignore_eos=True, n=1 + (key == 3)
            ),
            max_new_tokens=8 + 3 * key,
        )
        for key in range(n)
    ]


def test_sizes_lie_close_and_end_with_the_most_rows() -> None:
    assert graph_sizes(1) == [1]
    assert graph_sizes(10) == [1, 2, 4, 8, 10]
    assert graph_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    sizes = graph_sizes(520)
    assert sizes[-1] == 520
    assert all(b - a <= max(8, b // 4) for a, b in pairwise(sizes))


def test_the_largest_is_recorded_first_and_the_next_larger_is_chosen(model_dir: Path) -> None:
    backend, api = with_graphs(model_dir, max_sequences=10)
    assert api.recorded == [10, 8, 4, 2, 1]
    graphs = backend._runner._graphs  # type: ignore[attr-defined]
    chosen = [graphs.size_for(n) for n in range(1, 12)]
    assert chosen == [1, 2, 4, 4, 8, 8, 8, 8, 10, 10, None]


@pytest.mark.parametrize(
    "settings",
    [{}, {"sizes": [1, 2]}, {"kv_cache_tokens": 112, "max_batched_tokens": 40}],
    ids=["all sizes", "some batches are larger", "preempted and chunked"],
)
def test_tokens_are_those_without_graphs(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    expected = run_answers(on_device(model_dir, max_sequences=7), *make_requests(6))
    backend, api = with_graphs(model_dir, max_sequences=7, **settings)
    sizes = sorted(api.recorded)
    wanted: list[int] = []
    launch = DeviceRunner.launch

    def launch_noting_size(self: DeviceRunner, batch: Batch, **others: Any) -> Any:
        fitting = [size for size in sizes if size >= len(batch.rows)]
        if is_decode(batch, max_tokens=7) and fitting:
            wanted.append(fitting[0])
        return launch(self, batch, **others)

    monkeypatch.setattr(DeviceRunner, "launch", launch_noting_size)
    for _ in range(2):
        found = run_answers(backend, *make_requests(6))
        assert {key: tokens(each) for key, each in found.items()} == {
            key: tokens(each) for key, each in expected.items()
        }
    assert api.replayed == wanted
    assert {1, 2} <= set(wanted) <= set(sizes)
    assert ("kv_cache_tokens" in settings) == (backend.stats().n_preemptions > 0)


def test_guesses_run_through_graphs_too(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as a row of its own, as long as there are rows for all."""
    plain = on_device(model_dir, max_sequences=24)
    expected = run_answers(plain, *make_requests(6))
    backend, api = with_graphs(model_dir, max_sequences=24, speculation="ngram")
    known = [
        (*request.prompt_token_ids, *tokens(expected[request.key, choice]))
        for request in make_requests(6)
        for choice in range(request.sampling.n)
    ]
    guess_from(backend, known)
    model = backend._runner._model  # type: ignore[attr-defined]
    forward, n_forwards = model.forward, 0

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal n_forwards
        n_forwards += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    pack, sizes = backend._runner._pack, []  # type: ignore[attr-defined]

    def sized(batch: Batch, **others: Any) -> PackedStep:
        step: PackedStep = pack(batch, **others)
        if step.is_decode and batch.n_tokens > len(batch.rows):
            sizes.append(step.n_rows)
        return step

    monkeypatch.setattr(backend._runner, "_pack", sized)
    found = run_answers(backend, *make_requests(6))
    assert {key: tokens(each) for key, each in found.items()} == {
        key: tokens(each) for key, each in expected.items()
    }
    stats = backend.stats()
    assert 0 < stats.n_accepted_tokens < stats.n_drafted_tokens
    # Only steps with prompts, and those of more guesses than there are rows, go without.
    assert len(api.replayed) == stats.n_steps - n_forwards > 2
    assert stats.n_steps < plain.stats().n_steps
    # The kernels for few rows store and attend at once: no row may read what another writes.
    assert model.max_few_rows > 0
    assert min(sizes) > model.max_few_rows


def test_padding_writes_and_reads_nothing(model_dir: Path) -> None:
    backend, api = with_graphs(model_dir, max_sequences=8, sizes=[8])
    model = backend._runner._model  # type: ignore[attr-defined]
    requests = make_requests(3)
    answers = run_answers(backend, *requests)
    assert set(api.replayed) == {8}
    # What one head of the first layer holds: K of every token but the last that each has got.
    is_written = ~model.pool.tensor[0, 0, :, 0].isnan().any(dim=-1)
    n_computed = sum(len(each.prompt_token_ids) + each.max_new_tokens - 1 for each in requests)
    assert int(is_written.sum()) == n_computed
    assert not any(output.error for found in answers.values() for output in found)


def test_a_graph_recorded_on_a_pool_in_use_leaves_it_alone(model_dir: Path) -> None:
    """Recording runs the step: what it is recorded with has no slot and no context."""
    backend = on_device(model_dir, max_sequences=4)
    model = backend._runner._model  # type: ignore[attr-defined]
    model.pool.tensor.fill_(3.0)
    DecodeGraphs(model.decode_and_draw, sizes=[1, 2, 4], device=model.device, api=FakeGraphs())
    assert bool((model.pool.tensor == 3.0).all())
