"""The contract of a backend, held to by the nano-vllm package on a GPU: what our own backend's
tests ask of it, as far as both can, with answers checked against transformers."""

import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import flash_attn_shim
from engine_service.backends.base import EngineRequest, SequenceOutput
from engine_service.backends.nanovllm.adapter import NanoVllmBackend
from engine_service.backends.nanovllm.loading import load_package
from engine_service.config import EngineConfig
from engine_service.errors import RequestError
from engine_service.protocol import SamplingParams
from tests.models import random_model_dir
from tests.nano_vllm import skip_without_nano_vllm

pytestmark = pytest.mark.gpu

N_BLOCKS = 24
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
# How far below the best logit of transformers, in float32, one may be that bfloat16 took for it.
TOLERANCE = 0.5


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model_dir(
        tmp_path_factory.mktemp("model"), "qwen3", head_dim=128, max_position_embeddings=1024
    )


@pytest.fixture(scope="module")
def reference(model_dir: Path) -> Any:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).cuda().eval()


@pytest.fixture(scope="module")
def backend(model_dir: Path, reference: Any) -> Iterator[NanoVllmBackend]:
    """Loaded once: it compiles, captures graphs, and is one to a process. After the reference,
    since transformers looks for a flash_attn, and what stands in for it has no version."""
    skip_without_nano_vllm()
    _have_flash_attn()
    config = EngineConfig(
        model_dir=model_dir,
        backend="nanovllm",
        kv_cache_tokens=N_BLOCKS * 256,
        max_sequences=20,  # between two of its graphs
        max_batched_tokens=400,
    )
    port = socket.socket()
    with port:
        # As another engine on this machine would hold it, if it did what nano-vllm does alone.
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.bind(("127.0.0.1", 2333))
        port.listen()
        package = load_package(config)
    yield NanoVllmBackend(config, package=package)
    package.runner.exit()  # type: ignore[attr-defined]  # nano-vllm's own


def _have_flash_attn() -> None:
    """Where it is not installed, take what stands in for it in the benchmark; which of that is the
    fastest is not looked for here."""
    if flash_attn_shim._installed_version():
        return
    for candidate in ("paged", "pages"):
        try:
            flash_attn_shim._register(flash_attn_shim.CANDIDATES[candidate]())
        except LookupError:
            continue
        return


def make_request(
    key: int,
    *tags: str,
    prompt: Iterable[int] = range(300),
    n_tokens: int = 8,
    salt: str = "",
    sampling: SamplingParams = GREEDY,
) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=tuple(token % 256 for token in prompt),
        sampling=sampling,
        max_new_tokens=n_tokens,
        cache_salt=salt,
        cache_tags=tags,
    )


def run(backend: NanoVllmBackend, *requests: EngineRequest) -> dict[int, list[SequenceOutput]]:
    for request in requests:
        backend.add(request)
    outputs: dict[int, list[SequenceOutput]] = defaultdict(list)
    while backend.has_work():
        for output in backend.step():
            outputs[output.key].append(output)
    stats = backend.stats()
    assert (stats.n_running, stats.n_waiting) == (0, 0)
    assert stats.n_blocks_free == stats.n_blocks_total
    return outputs


def tokens(outputs: Iterable[SequenceOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def require_greedy(reference: Any, request: EngineRequest, answer: list[int]) -> None:
    """Each token must be the best after those before it, or so near that bfloat16 decides."""
    assert len(answer) == request.max_new_tokens
    token_ids = torch.tensor([[*request.prompt_token_ids, *answer]], device="cuda")
    with torch.inference_mode():
        logits = reference(token_ids).logits[0, len(request.prompt_token_ids) - 1 : -1].float()
    chosen = logits.gather(1, torch.tensor(answer, device="cuda")[:, None])[:, 0]
    gaps = logits.max(dim=1).values - chosen
    assert gaps.max().item() < TOLERANCE
    assert (gaps == 0.0).float().mean().item() > 0.6


def test_it_has_the_pool_that_it_was_told(backend: NanoVllmBackend) -> None:
    info = backend.info
    assert (info.backend, info.device, info.dtype) == ("nanovllm", "cuda", "bfloat16")
    assert (info.n_blocks, info.block_size, info.max_model_len) == (N_BLOCKS, 256, 1024)


def test_answers_are_those_of_the_model_and_stream(
    backend: NanoVllmBackend, reference: Any
) -> None:
    salt = "streams"
    first, again = (run(backend, make_request(0, salt=salt, n_tokens=40))[0] for _ in range(2))
    assert [len(output.token_ids) for output in first] == [1] * 40
    assert [output.finish_reason for output in first] == [None] * 39 + ["length"]
    assert [outputs[-1].n_cached_tokens for outputs in (first, again)] == [0, 256]
    for outputs in (first, again):
        require_greedy(reference, make_request(0, n_tokens=40), tokens(outputs))


def test_many_short_ones_and_a_prompt_in_parts(backend: NanoVllmBackend, reference: Any) -> None:
    """As many run at once as no graph was captured for: the next larger one takes them."""
    requests = [make_request(i, prompt=range(i, i + 10), n_tokens=20) for i in range(18)]
    requests.append(make_request(99, prompt=range(7, 457), n_tokens=20))
    outputs = run(backend, *requests)
    for request in requests:
        require_greedy(reference, request, tokens(outputs[request.key]))


def test_preempted_ones_go_on_as_if_nothing_had_been(
    backend: NanoVllmBackend, reference: Any
) -> None:
    n_before = backend.stats().n_preemptions
    requests = [make_request(i, prompt=range(i, i + 200), n_tokens=100) for i in range(20)]
    outputs = run(backend, *requests)
    assert backend.stats().n_preemptions > n_before
    for request in requests:
        require_greedy(reference, request, tokens(outputs[request.key]))


def test_salts_do_not_share_the_prefix_cache(backend: NanoVllmBackend) -> None:
    for key, (salt, n_cached) in enumerate([("a", 0), ("b", 0), ("a", 256), ("b", 256)]):
        outputs = run(backend, make_request(key, prompt=range(100, 400), salt=salt))
        assert outputs[key][-1].n_cached_tokens == n_cached


@pytest.mark.parametrize("n_steps", [0, 1, 4])
def test_abort_frees_at_once_and_reports_in_the_next_step(
    backend: NanoVllmBackend, n_steps: int
) -> None:
    backend.add(make_request(0, prompt=range(5), n_tokens=100))
    for _ in range(n_steps):
        backend.step()
    backend.abort(0)
    backend.abort(0)
    assert backend.stats().n_blocks_free == backend.stats().n_blocks_total
    (output,) = backend.step()
    assert (output.finish_reason, output.token_ids) == ("abort", ())
    assert output.n_completion_tokens == n_steps
    assert not backend.has_work()


def test_what_a_purge_forgets_is_overwritten(backend: NanoVllmBackend, reference: Any) -> None:
    pool = backend._runner.kv_cache  # type: ignore[attr-defined]
    request = make_request(0, "ann", prompt=range(50, 350), salt="purge")
    run(backend, request)
    assert run(backend, request)[0][-1].n_cached_tokens == 256
    is_blank = (pool == 0).flatten(3).all(dim=-1).all(dim=0).all(dim=0)
    assert backend.purge("ann") == 1
    is_blank_then = (pool == 0).flatten(3).all(dim=-1).all(dim=0).all(dim=0)
    assert int((is_blank_then & ~is_blank).sum()) == 1
    again = run(backend, request)[0]
    assert again[-1].n_cached_tokens == 0
    require_greedy(reference, request, tokens(again))


def test_draws_at_a_temperature_differ(backend: NanoVllmBackend) -> None:
    hot = SamplingParams(temperature=2.0, ignore_eos=True)
    outputs = run(
        backend, *(make_request(i, prompt=range(9), sampling=hot, n_tokens=12) for i in range(4))
    )
    assert len({tuple(tokens(each)) for each in outputs.values()}) == 4


def test_its_fatal_inputs_do_not_reach_it(backend: NanoVllmBackend) -> None:
    for prompt, n_tokens in (((), 1), ((1,), 0), (range(1000), 25), ((320,), 1), ((-1,), 1)):
        request = EngineRequest(
            key=1, prompt_token_ids=tuple(prompt), sampling=GREEDY, max_new_tokens=n_tokens
        )
        with pytest.raises(RequestError):
            backend.add(request)
    assert not backend.has_work()
    assert len(run(backend, make_request(1, prompt=[7]))[1]) == 8
