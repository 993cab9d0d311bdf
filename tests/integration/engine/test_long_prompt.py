"""A prompt as long as the context arrives among 16 streams: they go on, and so does a short one."""

import os
import statistics
from pathlib import Path

import pytest

from benchmarks.engine.long_prompt import KV_CACHE_TOKENS, measure
from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.protocol import SamplingParams
from tests.models import random_llama_dir, smollm2_dir

N_STREAMS = 16
LONG, SHORT = 100, 101
BUDGET = 64
N_LONG = 480


def make_request(key: int, *, n_prompt: int, n_new: int) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=tuple((key * 7 + i) % 300 for i in range(n_prompt)),
        sampling=SamplingParams(temperature=0.0, ignore_eos=True),
        max_new_tokens=n_new,
    )


def test_no_step_leaves_a_stream_out_and_the_short_one_comes_first(tmp_path: Path) -> None:
    backend = NativeBackend(
        EngineConfig(
            model_dir=random_llama_dir(tmp_path),
            dtype="float32",
            n_threads=1,
            kv_cache_tokens=4096,
            max_batched_tokens=BUDGET,
            prefill_slowdown=None,
        )
    )
    for key in range(N_STREAMS):
        backend.add(make_request(key, n_prompt=8, n_new=200))
    for _ in range(4):
        backend.step()
    backend.add(make_request(LONG, n_prompt=N_LONG, n_new=1))
    backend.add(make_request(SHORT, n_prompt=20, n_new=1))
    first_token_at: dict[int, int] = {}
    n_steps = 0
    while LONG not in first_token_at:
        keys = [output.key for output in backend.step() if output.token_ids]
        assert set(range(N_STREAMS)) <= set(keys), "a stream got no token from a step"
        n_steps += 1
        first_token_at |= {key: n_steps for key in keys if key >= LONG}
    n_for_prompts = BUDGET - N_STREAMS
    assert first_token_at == {SHORT: 1, LONG: -(-(N_LONG + 20) // n_for_prompts)}


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_streams_wait_three_times_the_median_at_most_and_a_short_prompt_twice() -> None:
    model_dir = smollm2_dir()
    config = EngineConfig(
        model_dir=model_dir,
        kv_cache_tokens=KV_CACHE_TOKENS,
        speculation="off",
        n_threads=os.cpu_count(),  # not what another test has left torch with
    )
    runs = [measure(config) for _ in range(3)]
    print(*runs, sep="\n")
    assert statistics.median(run.worst_by_median for run in runs) <= 3.0
    assert statistics.median(run.short_ratio for run in runs) <= 2.0
