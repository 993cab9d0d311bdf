"""What the prefix cache keeps of a tenant or a person is forgotten when asked for, and no more."""

from pathlib import Path

import pytest

from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.protocol import SamplingParams

N_BLOCKS = 32


@pytest.fixture
def backend(model_dir: Path) -> NativeBackend:
    return NativeBackend(
        EngineConfig(
            model_dir=model_dir,
            dtype="float32",
            kernels="reference",  # its pool can be looked into
            kv_cache_tokens=16 * N_BLOCKS,
        )
    )


def make_request(
    key: int, *tags: str, first: int, n_prompt: int = 40, n_tokens: int = 2
) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=tuple((first + i) % 250 for i in range(n_prompt)),
        sampling=SamplingParams(temperature=0.0, ignore_eos=True),
        max_new_tokens=n_tokens,
        cache_tags=tags,
    )


def run(backend: NativeBackend, request: EngineRequest) -> tuple[tuple[int, ...], int]:
    """The answer, and how many tokens of the prompt came from the cache."""
    backend.add(request)
    return finish(backend)


def finish(backend: NativeBackend) -> tuple[tuple[int, ...], int]:
    tokens: list[int] = []
    n_cached = 0
    while backend.has_work():
        for output in backend.step():
            tokens += output.token_ids
            n_cached = output.n_cached_tokens
    return tuple(tokens), n_cached


def n_blocks_with_content(backend: NativeBackend) -> int:
    layers = backend._runner._executor._kv_cache.layers  # type: ignore[attr-defined]
    return sum(bool(layers[0][block].any()) for block in range(N_BLOCKS))


def test_a_persons_blocks_are_forgotten_and_overwritten_and_others_kept(
    backend: NativeBackend,
) -> None:
    before = run(backend, make_request(1, "acme", "ann", first=0))
    run(backend, make_request(2, "acme", "bob", first=100))
    run(backend, make_request(3, "other", first=200))
    assert backend.stats().n_blocks_cached == 6
    n_blocks = n_blocks_with_content(backend)
    assert backend.purge("ann") == 2
    assert n_blocks_with_content(backend) == n_blocks - 2
    stats = backend.stats()
    assert (stats.n_blocks_cached, stats.n_blocks_free) == (4, N_BLOCKS)
    assert backend.purge("ann") == 0
    assert run(backend, make_request(4, first=100))[1] == 32
    assert run(backend, make_request(5, "acme", "ann", first=0)) == (before[0], 0)
    assert backend.purge("acme") == 4
    assert run(backend, make_request(6, first=200))[1] == 32


def test_a_prefix_that_two_share_is_forgotten_with_either(backend: NativeBackend) -> None:
    for finder_is_purged in (True, False):
        run(backend, make_request(1, "ann", first=0))
        assert run(backend, make_request(2, "bob", first=0))[1] == 32
        assert backend.purge("bob" if finder_is_purged else "ann") == 2
        assert backend.stats().n_blocks_cached == 0


def test_a_request_that_runs_keeps_its_blocks_and_its_answer(
    backend: NativeBackend, model_dir: Path
) -> None:
    request = make_request(1, "ann", first=0, n_tokens=30)
    backend.add(request)
    backend.step()
    n_blocks = n_blocks_with_content(backend)
    assert backend.purge("ann") == 2
    assert n_blocks_with_content(backend) == n_blocks
    alone = NativeBackend(EngineConfig(model_dir=model_dir, dtype="float32"))
    assert finish(backend)[0] == run(alone, request)[0][1:]
    stats = backend.stats()
    assert (stats.n_blocks_free, stats.n_running) == (N_BLOCKS, 0)
    assert run(backend, make_request(2, "bob", first=0))[1] == 0


def test_answers_to_one_prompt_are_purged_together(backend: NativeBackend) -> None:
    request = EngineRequest(
        key=1,
        prompt_token_ids=tuple(range(32)),
        sampling=SamplingParams(ignore_eos=True, n=3, seed=1),
        max_new_tokens=20,
        cache_tags=("ann",),
    )
    backend.add(request)
    finish(backend)
    n_cached = backend.stats().n_blocks_cached
    assert n_cached == 2 + 3  # the prompt's, and one of each answer
    assert backend.purge("ann") == n_cached
    assert backend.stats().n_blocks_cached == 0
