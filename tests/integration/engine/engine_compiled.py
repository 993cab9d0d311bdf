"""Starts an engine and answers requests of every kind on the processor, has what a GPU would launch
for that compiled beside it, and prints which kernels were compiled when, as JSON.

    TRITON_INTERPRET=0 TRITON_CACHE_DIR=EMPTY python -m tests.integration.engine.engine_compiled \
        DIRECTORY GPU SETTINGS

Each kernel gets the tensors that it would get, of the same types, strides and alignment. What it
would compute is computed in torch.
"""

import functools
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.compiler import GPUS, driving
from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig, ModelConfig
from engine_service.kernels.device import TorchKernels
from engine_service.kernels.triton.compiling import launching_nothing
from engine_service.kernels.triton.kernels import TritonKernels
from engine_service.models.shard import WHOLE
from engine_service.protocol import SamplingParams
from engine_service.runner import device_loading
from engine_service.runner.decode_graphs import DecodeGraphs, graph_sizes
from engine_service.runner.device_choice import dtype_on
from engine_service.runner.device_plan import DevicePlan
from engine_service.runner.device_trials import warm_up
from engine_service.runner.rehearsal import compiling_ahead
from tests.integration.engine.backend import run_answers
from tests.integration.engine.test_decode_graphs import FakeGraphs
from tests.masks import ListedMask
from tests.models import random_llama_dir

VOCAB = 320
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "kernels": "torch",
    "dtype": "bfloat16",
    "speculation": "ngram",
    "prefill_slowdown": None,
    "max_sequences": 48,
    "kv_cache_tokens": 4096,
}
N_KINDS = 12


class BothKernels(TorchKernels):
    """Torch's, each call of which has Triton's compiled."""

    def __init__(self) -> None:
        super().__init__()
        triton = TritonKernels()
        for name in vars(TritonKernels):
            if not name.startswith("_") and callable(getattr(triton, name)):
                setattr(self, name, self._both(getattr(triton, name), getattr(super(), name)))

    @staticmethod
    def _both(compiled: Any, computed: Any) -> Any:
        @functools.wraps(computed)
        def call(*args: Any, **options: Any) -> Any:
            compiled(*args, **options)
            return computed(*args, **options)

        return call


def rehearse(config: EngineConfig) -> None:
    model_config = ModelConfig.from_dir(config.model_dir)
    max_len = config.effective_max_model_len(model_config.context_length, sliding_window=None)
    plan = DevicePlan(
        config=config,
        model_config=model_config,
        shard=WHOLE,
        dtype=dtype_on(config, device=torch.device("cpu")),
        max_len=max_len,
    )
    with compiling_ahead(plan, kernels=TritonKernels()):
        pass


def make_ready(config: EngineConfig) -> NativeBackend:
    """Do as an engine on a GPU does before its first request."""
    device_loading._kernels = lambda *_, **__: BothKernels()
    backend = NativeBackend(config)
    runner: Any = backend._runner
    model = runner._model
    warm_up(model, runner._sampler, config=config)
    sizes = graph_sizes(backend.info.max_sequences)
    runner._graphs = runner._steps._graphs = DecodeGraphs(
        model.decode_and_draw, sizes=sizes, device=model.device, api=FakeGraphs()
    )
    return backend


def compiled() -> dict[str, dict[str, Any]]:
    """Return what Triton's cache says of each kernel."""
    found = {}
    for path in Path(os.environ["TRITON_CACHE_DIR"]).glob("*/*.json"):
        facts = json.loads(path.read_text())
        if "shared" in facts:  # not an index of files
            found[path.parent.name] = facts
    return found


def requests() -> Iterator[EngineRequest]:
    rng = random.Random(5)
    lengths = [1, 2, 3, 7, 15, 16, 17, 31, 40, 63, 64, 65, 90, 130, 200, 257, 300]
    for key in range(120):
        kind: dict[str, Any] = {
            0: {"temperature": 0.0},
            1: {"top_k": 5},
            2: {"top_p": 0.9, "min_p": 0.05},
            3: {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
            4: {"presence_penalty": 1.1},
            5: {"logit_bias": ((7, 4.0), (9, -3.0))},
            6: {"min_tokens": 6, "stop_token_ids": (66, 10)},
            7: {"logprobs": 3},
            8: {"prompt_logprobs": 2},
            9: {"n": 3},
            10: {"temperature": 0.0, "logit_bias": ((7, 90.0),)},
        }.get(key % N_KINDS, {"top_k": 20})
        mask = None
        if key % N_KINDS == N_KINDS - 1:
            mask = ListedMask(lambda n: range(n % 3, VOCAB, 3), vocab_size=VOCAB)
        sampling = {"temperature": 0.8, "seed": key, "ignore_eos": True} | kind
        yield EngineRequest(
            key=key,
            prompt_token_ids=tuple(rng.randrange(VOCAB) for _ in range(rng.choice(lengths))),
            sampling=SamplingParams(**sampling),
            max_new_tokens=rng.randrange(1, 25),
            mask=mask,
            cache_tags=(),
        )


def serve(backend: NativeBackend) -> int:
    """Answer them alone, a few at a time and many; return how many answers there were."""
    rng = random.Random(7)
    waiting = list(requests())
    n_answers = 0
    while waiting:
        n = rng.choice((1, 2, 3, 6, 20))
        answers = run_answers(backend, *waiting[:n])
        assert all(output.error is None for found in answers.values() for output in found)
        n_answers += len(answers)
        del waiting[:n]
    return n_answers


def main() -> None:
    gpu = GPUS[sys.argv[2]]
    model_dir = random_llama_dir(Path(sys.argv[1]))
    config = EngineConfig(model_dir=model_dir, **SETTINGS | json.loads(sys.argv[3]))
    with driving(gpu):
        rehearse(config)
        rehearsed = compiled()
        with launching_nothing():
            backend = make_ready(config)
            ready = compiled()
            n_answers = serve(backend)
    served = compiled()
    report = {
        "n_answers": n_answers,
        "rehearsed": sorted(facts["name"] for facts in rehearsed.values()),
        "compiled_when_made_ready": [ready[key]["name"] for key in ready.keys() - rehearsed],
        "compiled_when_serving": [served[key]["name"] for key in served.keys() - ready],
        "too_large": [
            each["name"] for each in served.values() if each["shared"] > gpu.shared_bytes
        ],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
