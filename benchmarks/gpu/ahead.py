"""What engines launch on a GPU, compiled for GPUs that need not be there.

    python -m benchmarks.gpu.ahead --output FILE [--gpus H200 ...] [--engines qwen3-0.6b ...]

The engine's own code lays out its steps over tensors of torch's device "meta", which have shapes
and no numbers: those that it computes before its first request, and those of its CUDA graphs. What
they launch is compiled (``compiler``). Fails where a kernel cannot be compiled or does not fit the
GPU's shared memory.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import torch
import triton

from benchmarks.gpu.compiler import GPUS, Compiled, compiling
from engine_service.config import (
    DTypeName,
    EngineConfig,
    KVCacheDTypeName,
    ModelConfig,
    QuantizationName,
)
from engine_service.errors import ModelError
from engine_service.kernels.triton.gpu import Gpu
from engine_service.kernels.triton.kernels import TritonKernels
from engine_service.models.shard import WHOLE
from engine_service.rotary import RotaryConfig
from engine_service.runner.device_choice import gpu_dtype
from engine_service.runner.device_plan import DevicePlan
from engine_service.runner.rehearsal import rehearse

MAX_LEN: Final = 4096
MAX_ROWS: Final = 256
MAX_BATCHED_TOKENS: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A model's dimensions, and how an engine is asked to hold it."""

    architecture: str
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    dtype: DTypeName = "auto"
    quantization: QuantizationName = "none"
    kv_cache_dtype: KVCacheDTypeName = "auto"

    @property
    def config(self) -> EngineConfig:
        return EngineConfig(
            model_dir=Path(),
            device="cuda",
            dtype=self.dtype,
            quantization=self.quantization,
            kv_cache_dtype=self.kv_cache_dtype,
            max_model_len=MAX_LEN,
            max_sequences=MAX_ROWS,
            max_batched_tokens=MAX_BATCHED_TOKENS,
        )

    def plan(self, gpu: Gpu) -> DevicePlan:
        """Raises ModelError where the GPU lacks what is asked for."""
        return DevicePlan(
            config=self.config,
            model_config=self.model_config,
            shard=WHOLE,
            dtype=gpu_dtype(self.config, capability=gpu.capability),
            max_len=MAX_LEN,
        )

    @property
    def model_config(self) -> ModelConfig:
        return ModelConfig(
            architecture=self.architecture,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            n_layers=1,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            rms_norm_eps=1e-6,
            rotary=RotaryConfig(theta=10_000.0),
            context_length=MAX_LEN,
            sliding_window=None,
            tie_word_embeddings=False,
            eos_token_ids=frozenset(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """stack_bytes: of each kernel whose registers did not suffice, what its worst variant keeps
    elsewhere. over: kernels that need more shared memory than there is. refused: why the
    engine says that it cannot be on this GPU. fault: why a kernel cannot be compiled."""

    gpu: str
    engine: str
    n_kernels: int
    most_registers: int
    most_shared_bytes: int
    stack_bytes: dict[str, int]
    over: list[str]
    refused: str | None
    fault: str | None


_QWEN3: Final = Engine(
    architecture="Qwen3ForCausalLM",
    hidden_size=1024,
    n_heads=16,
    n_kv_heads=8,
    head_dim=128,
    intermediate_size=3072,
    vocab_size=151_936,
)
_LLAMA_8B: Final = Engine(
    architecture="LlamaForCausalLM",
    hidden_size=4096,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    intermediate_size=14_336,
    vocab_size=128_256,
)
ENGINES: Final = {
    "qwen3-0.6b": _QWEN3,
    "qwen3-0.6b float32": replace(_QWEN3, dtype="float32"),
    "qwen3-0.6b int8": replace(_QWEN3, quantization="int8"),
    "qwen3-0.6b fp8, KV fp8": replace(_QWEN3, quantization="fp8", kv_cache_dtype="fp8"),
    "llama-3.1-8b": _LLAMA_8B,
    "llama-3.1-8b KV fp8": replace(_LLAMA_8B, kv_cache_dtype="fp8"),
    "smollm2-135m": replace(
        _LLAMA_8B,
        hidden_size=576,
        n_heads=9,
        n_kv_heads=3,
        head_dim=64,
        intermediate_size=1536,
        vocab_size=49_152,
    ),
    "qwen2.5-7b": replace(
        _LLAMA_8B,
        architecture="Qwen2ForCausalLM",
        hidden_size=3584,
        n_heads=28,
        n_kv_heads=4,
        intermediate_size=18_944,
        vocab_size=152_064,
    ),
    "heads of 80": replace(_LLAMA_8B, hidden_size=2560, n_kv_heads=32, head_dim=80),
    "heads of 96": replace(_LLAMA_8B, hidden_size=3072, n_kv_heads=32, head_dim=96),
    "heads of 256": replace(_LLAMA_8B, hidden_size=2048, n_heads=8, n_kv_heads=1, head_dim=256),
    "heads of 256 float32": replace(
        _LLAMA_8B, hidden_size=2048, n_heads=8, n_kv_heads=1, head_dim=256, dtype="float32"
    ),
}


def compile_engine(gpu: str, engine: str) -> Report:
    """Compile what it launches; for a process without ``TRITON_INTERPRET``."""
    fault, refused, asked = None, None, ENGINES[engine]
    with compiling(GPUS[gpu]) as compiler:
        try:
            rehearse(asked.plan(GPUS[gpu]), kernels=TritonKernels())
        except ModelError as error:
            refused = str(error)
        except Exception as error:  # noqa: BLE001 (the compiler's are of many types)
            fault = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    found = compiler.kernels
    return Report(
        gpu=gpu,
        engine=engine,
        n_kernels=len(found),
        most_registers=max((each.n_registers for each in found), default=0),
        most_shared_bytes=max((each.shared_bytes for each in found), default=0),
        stack_bytes=_most(each for each in found if each.n_stack_bytes),
        over=sorted({each.name for each in found if each.shared_bytes > GPUS[gpu].shared_bytes}),
        refused=refused,
        fault=fault,
    )


def _most(kernels: Iterable[Compiled]) -> dict[str, int]:
    ordered = sorted(kernels, key=lambda each: each.n_stack_bytes)
    return {each.name: each.n_stack_bytes for each in ordered}


def compile_all(pairs: SequenceOf[tuple[str, str]], *, n_processes: int) -> Iterator[Report]:
    """Yield reports of pairs of GPU and engine, in order."""
    with ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(compile_engine, *zip(*pairs, strict=True))


def _row(report: Report) -> str:
    stack = ", ".join(f"{name} {n}" for name, n in report.stack_bytes.items())
    verdict = report.fault or report.refused or "fits"
    if report.over:
        verdict = f"too much shared memory: {', '.join(report.over)}"
    return (
        f"{report.gpu:9} {report.engine:24} {report.n_kernels:4} "
        f"{report.most_registers:5} {report.most_shared_bytes / 1024:6.0f}  {verdict}"
        + (f"; on the stack: {stack}" if stack else "")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--gpus", nargs="+", choices=GPUS, default=list(GPUS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    options = parser.parse_args()
    print(f"{'GPU':9} {'engine':24} {'n':>4} {'regs':>5} {'KiB':>6}")
    reports = []
    pairs = list(product(options.gpus, options.engines))
    for report in compile_all(pairs, n_processes=os.cpu_count() or 1):
        reports.append(report)
        print(_row(report), flush=True)
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    found = {"versions": versions, "reports": [asdict(each) for each in reports]}
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(each.fault or each.over for each in reports))


if __name__ == "__main__":
    sys.exit(main())
