"""Loads a model into nano-vllm, or says why that cannot be: the settings, the model, the package,
the GPU. What it would silently compute otherwise than our own backend is refused here."""

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors import safe_open

from engine_service.backends.base import ModelInfo
from engine_service.backends.nanovllm.admission import UNSUPPORTED
from engine_service.config import EngineConfig, ModelConfig
from engine_service.errors import ModelError
from engine_service.models.manifest import verify_manifest

logger = logging.getLogger(__name__)

ARCHITECTURE: Final = "Qwen3ForCausalLM"
# flash-attn's paged attention takes multiples of it.
BLOCK_TOKENS: Final = 256
# What it computes with cannot be anything else.
_FIXED: Final[Mapping[str, object]] = {
    "kernels": "auto",
    "attention": "auto",
    "instruction_set": None,
    "quantization": "none",
    "kv_cache_dtype": "auto",
    "target_itl_s": None,
    "host_kv_cache_bytes": 0,
    "sleep_after_s": None,
    "draft_model_dir": None,
    "tensor_parallel": 1,  # of several ranks, nano-vllm shares memory of a fixed name
}


class Runner(Protocol):
    """What computes and samples a step, and can overwrite blocks."""

    def run(self, seqs: list[Any], is_prefill: bool) -> list[int]:
        """Return a token for each sequence; that of an unfinished prompt means nothing."""

    def clear(self, blocks: list[int]) -> None:
        """Overwrite what these blocks hold."""

    def is_lost(self) -> bool:
        """Whether no step can succeed any more, after one that raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """nano-vllm with a loaded model. scheduler: an ``EndableScheduler``; make_sequence: makes a
    ``TenantSequence``."""

    info: ModelInfo
    scheduler: Any
    runner: Runner
    make_sequence: Callable[..., Any]


def load_package(config: EngineConfig) -> Package:
    """Load a model directory on the one GPU that is visible.

    Of the settings ``block_size`` is 256 if it is not a multiple of that, ``dtype`` bfloat16, and
    ``speculation`` and ``prefill_slowdown``, which change no token, have nothing to act on. The
    rest means what it means to our own backend, or is refused.

    Raises:
        ModelError: says what is wrong or missing.
    """
    config = _settled(config)
    model_config = ModelConfig.from_dir(config.model_dir)
    _check_model(model_config)
    max_model_len = config.effective_max_model_len(
        model_config.context_length, sliding_window=model_config.sliding_window
    )
    package = _import_package()
    verify_manifest(config.model_dir)
    _check_tensors(config.model_dir, model_config)
    try:
        return _load(package, config, model_config=model_config, max_model_len=max_model_len)
    except ModelError:
        raise
    except Exception as error:  # whatever its constructors, Triton or the driver raise
        logger.exception("nano-vllm could not load the model")
        raise ModelError(f"nano-vllm cannot load {config.model_dir}: {error}") from error


def _load(
    package: Any, config: EngineConfig, *, model_config: ModelConfig, max_model_len: int
) -> Package:
    if config.n_threads is not None:
        torch.set_num_threads(config.n_threads)
    nano_config = package.make_config(
        str(config.model_dir),
        sizes=package.Sizes(
            block_size=config.block_size,
            max_sequences=config.max_sequences,
            max_batched_tokens=config.max_batched_tokens,
            max_model_len=max_model_len,
            memory_fraction=config.gpu_memory_fraction,
        ),
        dtype=torch.bfloat16,
        rope_theta=model_config.rotary.theta,
    )
    n_wanted = None if config.kv_cache_tokens is None else config.n_blocks
    runner = package.PooledRunner(nano_config, n_blocks=n_wanted)
    n_blocks = nano_config.num_kvcache_blocks  # others that use the GPU, too, may change it
    return Package(
        info=ModelInfo(
            name=config.model_dir.name,
            architecture=model_config.architecture,
            dtype="bfloat16",
            device="cuda",
            kernels=f"nano-vllm {package.package_version()}, flash-attn {_flash_attn_version()}",
            backend="nanovllm",
            vocab_size=model_config.vocab_size,
            max_model_len=min(max_model_len, n_blocks * config.block_size),
            block_size=config.block_size,
            n_blocks=n_blocks,
            max_sequences=config.max_sequences,
            eos_token_ids=model_config.eos_token_ids,
            unsupported=UNSUPPORTED,
            takes_masks=False,
        ),
        scheduler=package.make_scheduler(nano_config, max_sequences=config.max_sequences),
        runner=runner,
        make_sequence=package.TenantSequence,
    )


def _settled(config: EngineConfig) -> EngineConfig:
    for name, value in _FIXED.items():
        if (asked := getattr(config, name)) != value:
            raise ModelError(f"{name}={asked} is not supported by the nanovllm backend")
    if config.device == "cpu":
        raise ModelError("device=cpu is not supported by the nanovllm backend")
    if config.dtype == "float32":
        raise ModelError(
            "dtype=float32 is not supported by the nanovllm backend: flash-attn computes in 16 bits"
        )
    if config.block_size % BLOCK_TOKENS:
        config = replace(config, block_size=BLOCK_TOKENS)
    return config


def _check_model(model: ModelConfig) -> None:
    if model.architecture != ARCHITECTURE:
        raise ModelError(f"the nanovllm backend runs {ARCHITECTURE} only, not {model.architecture}")
    if model.rotary.scaling is not None:
        raise ModelError("the nanovllm backend knows no scaled rotary positions (rope_scaling)")
    if model.head_dim > 256:
        raise ModelError(f"flash-attn takes a head_dim of up to 256, not {model.head_dim}")
    n_values = model.n_kv_heads * model.head_dim
    if n_values & (n_values - 1):
        # Its kernel that stores K and V has one Triton range over all of them.
        raise ModelError(
            "the nanovllm backend needs num_key_value_heads x head_dim to be a power of two, "
            f"not {n_values}"
        )


def _import_package() -> Any:
    for name in ("flash_attn", "nanovllm"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ModelError(
                f"the nanovllm backend needs the package {name}, which cannot be imported: "
                f"{error}; docs/engine.md says how to install it"
            ) from error
    if not torch.cuda.is_available():
        raise ModelError("the nanovllm backend needs a GPU, and CUDA shows none")
    return importlib.import_module("engine_service.backends.nanovllm.package")


def _flash_attn_version() -> str:
    return str(getattr(importlib.import_module("flash_attn"), "__version__", "of no known version"))


def _check_tensors(model_dir: Path, model: ModelConfig) -> None:
    """See that the files hold each tensor with its shape: nano-vllm leaves what is missing as it
    was allocated, and copies what fits by broadcasting."""
    expected = dict(_tensor_shapes(model))
    for path in sorted(model_dir.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                shape = tuple(file.get_slice(name).get_shape())
                wanted = expected.pop(name, None)
                if wanted is None and not (name == "lm_head.weight" and model.tie_word_embeddings):
                    raise ModelError(f"the model has an unknown tensor, or one twice: {name}")
                if wanted is not None and shape != wanted:
                    raise ModelError(
                        f"{name} has the shape {shape}, the configuration says {wanted}"
                    )
    if expected:
        raise ModelError(f"the model lacks the tensor {next(iter(expected))}")


def _tensor_shapes(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner = model.hidden_size, model.intermediate_size
    n_query, n_kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    yield "model.embed_tokens.weight", (model.vocab_size, width)
    yield "model.norm.weight", (width,)
    if not model.tie_word_embeddings:
        yield "lm_head.weight", (model.vocab_size, width)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_norm": (model.head_dim,),
        "self_attn.k_norm": (model.head_dim,),
        "self_attn.q_proj": (n_query, width),
        "self_attn.k_proj": (n_kv, width),
        "self_attn.v_proj": (n_kv, width),
        "self_attn.o_proj": (width, n_query),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    for index in range(model.n_layers):
        for name, shape in layer.items():
            yield f"model.layers.{index}.{name}.weight", shape
