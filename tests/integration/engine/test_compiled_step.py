"""A request's tokens on the compiled kernels are the same bits alone and in any company: mixed
batches, chunks, preemption, prefix hits, and draws by a seed. No ties are forgiven here."""

from collections import defaultdict
from pathlib import Path

import pytest

from engine_service.backends.base import EngineRequest, SequenceOutput
from engine_service.backends.native import NativeBackend
from engine_service.config import DTypeName, EngineConfig
from engine_service.protocol import SamplingParams
from tests.compiled import compiled_library
from tests.models import random_model_dir

N_TOKENS = 16
SHARED = tuple(range(60, 95))
PROMPTS = [tuple(range(3, 3 + n)) for n in (1, 15, 16, 17, 40, 70)]
PROMPTS += [(*SHARED, n) for n in (1, 2, 3)]
# Sizes that are no multiple of a vector or a panel.
SIZES = {"hidden_size": 90, "intermediate_size": 101, "num_attention_heads": 6, "head_dim": 16}


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiled_library()
    return random_model_dir(tmp_path_factory.mktemp("model"), request.param, **SIZES)


def requests() -> list[EngineRequest]:
    """Each prompt greedily, and with draws beside what the model thinks of the prompt."""
    return [
        EngineRequest(
            key=2 * key + is_drawn,
            prompt_token_ids=prompt,
            sampling=SamplingParams(
                temperature=float(is_drawn),
                seed=1000 + key,
                ignore_eos=True,
                logprobs=2,
                prompt_logprobs=1 if is_drawn else None,
            ),
            max_new_tokens=N_TOKENS,
        )
        for key, prompt in enumerate(PROMPTS)
        for is_drawn in (False, True)
    ]


def run(backend: NativeBackend, wanted: list[EngineRequest]) -> dict[int, tuple[object, ...]]:
    """Return of each request its tokens and all log-probabilities, to the last bit."""
    for request in wanted:
        backend.add(request)
    outputs: dict[int, list[SequenceOutput]] = defaultdict(list)
    while backend.has_work():
        for output in backend.step():
            assert output.error is None
            outputs[output.key].append(output)
    return {
        key: tuple(
            entry
            for output in found
            for entry in (
                *output.prompt_logprobs,
                *zip(output.token_ids, output.logprobs, strict=True),
            )
        )
        for key, found in outputs.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_request_has_the_same_bits_in_any_company(model_dir: Path, dtype: DTypeName) -> None:
    def make_backend(kv_cache_tokens: int, max_batched_tokens: int) -> NativeBackend:
        return NativeBackend(
            EngineConfig(
                model_dir=model_dir,
                dtype=dtype,
                kernels="compiled",
                kv_cache_tokens=kv_cache_tokens,
                max_sequences=7,
                max_batched_tokens=max_batched_tokens,
                max_model_len=112,
            )
        )

    roomy = make_backend(4096, 512)
    expected: dict[int, tuple[object, ...]] = {}
    for request in requests():
        expected |= run(roomy, [request])
    assert len({entry[-1] for entry in expected.values()}) > len(PROMPTS)

    tight = make_backend(192, 13)
    for order in (1, -1):
        assert run(tight, requests()[::order]) == expected
    stats = tight.stats()
    assert stats.n_preemptions > 0
    assert stats.n_cached_tokens > 0
