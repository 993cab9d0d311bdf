"""Settings of the engine process and the model's own config.json, read into checked values."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from engine_service.errors import ModelError
from engine_service.families import (
    FAMILIES,
    Family,
    read_architecture,
    read_sliding_window,
    refuse_unimplemented,
)
from engine_service.json_fields import JsonFields
from engine_service.rotary import RotaryConfig, read_rotary

logger = logging.getLogger(__name__)

DTypeName = Literal["auto", "bfloat16", "float32"]
DTYPE_NAMES: Final = ("auto", "bfloat16", "float32")
DeviceName = Literal["auto", "cpu", "cuda"]
DEVICE_NAMES: Final = ("auto", "cpu", "cuda")
KernelsName = Literal["auto", "compiled", "reference", "triton", "torch"]
KERNELS_NAMES: Final = ("auto", "compiled", "reference", "triton", "torch")
SpeculationName = Literal["auto", "off", "ngram"]
SPECULATION_NAMES: Final = ("auto", "off", "ngram")
QuantizationName = Literal["none", "int8", "fp8"]
QUANTIZATION_NAMES: Final = ("none", "int8", "fp8")
KVCacheDTypeName = Literal["auto", "fp8"]
KV_CACHE_DTYPE_NAMES: Final = ("auto", "fp8")
AttentionName = Literal["auto", "triton", "flash-attn", "flashinfer"]
ATTENTION_NAMES: Final = ("auto", "triton", "flash-attn", "flashinfer")
BackendName = Literal["native", "nanovllm"]
BACKEND_NAMES: Final = ("native", "nanovllm")


DEFAULT_KV_CACHE_TOKENS: Final = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How one engine process runs one model.

    device: ``auto`` is a GPU where torch finds one.
    dtype: ``auto`` is bfloat16 on a GPU, on the compiled kernels and where the processor multiplies
        it natively, else float32.
    kv_cache_tokens: size of the KV pool; None is ``DEFAULT_KV_CACHE_TOKENS`` on a processor, and on
        a GPU all memory up to ``gpu_memory_fraction`` of it that weights and steps leave.
    max_sequences: most sequences in one step.
    max_batched_tokens: most tokens in one step, decode and prefill together.
    max_model_len: None takes the model's context; both are bounded by the pool.
    max_waiting_per_tenant: most of those that wait may be one tenant's, so that one that floods
        leaves room for others; None sets no such bound.
    target_itl_s: how long a step that decodes and prefills should take; None sets no target.
    prefill_slowdown: or how many times as long as a step that only decodes; None sets no such one.
    speculation: ``ngram`` drafts by prompt lookup where that pays; the tokens are the same.
        ``auto`` does on a processor, and with a draft model anywhere, by that; on a GPU steps
        overlap instead.
    draft_model_dir: a small model with the same tokenizer, which guesses what the large one then
        checks, where that pays; it is not quantised, and its pool has as many tokens.
    n_threads: None leaves the choice to torch.
    kernels: ``auto`` is triton on a GPU; else compiled where that can be, else reference, with a
        warning. ``torch`` is what triton's are compared with, on either.
    attention: on a GPU ``auto`` measures the triton kernels and what libraries there are, and takes
        the fastest; a library that is named is taken or is an error.
    quantization: ``int8`` and ``fp8`` halve the weights when loading. On a processor only the
        compiled kernels know ``int8``, and nothing ``fp8``, torch's aside, which know both.
    kv_cache_dtype: ``fp8`` stores K and V as float8_e4m3fn, cast as they are; only on a GPU.
        ``auto`` stores them as they are computed.
    instruction_set: which one the compiled kernels use; None takes the best there is.
    host_kv_cache_bytes: host memory for prefix blocks that the pool evicts, of all ranks together;
        0 keeps none.
    disk_kv_cache_bytes: disk for those that host memory evicts, in kv_cache_dir, likewise; 0 keeps
        none.
    trace: a file that gets every step as trace events.
    tensor_parallel: how many GPUs hold the model together, each its part of every layer.
    sleep_after_s: an engine that has had no work for so long gives its GPU's memory back until it
        has; None never does.
    backend: ``nanovllm`` is the nano-vllm package; ``backends/nanovllm/loading.py`` says which of
        these settings it knows.
    """

    model_dir: Path
    device: DeviceName = "auto"
    backend: BackendName = "native"
    dtype: DTypeName = "auto"
    block_size: int = 16
    kv_cache_tokens: int | None = None
    gpu_memory_fraction: float = 0.9
    max_sequences: int = 64
    max_batched_tokens: int = 512
    max_model_len: int | None = None
    max_waiting: int = 512
    max_waiting_per_tenant: int | None = 256
    target_itl_s: float | None = None
    prefill_slowdown: float | None = 1.7
    speculation: SpeculationName = "auto"
    draft_model_dir: Path | None = None
    n_threads: int | None = None
    kernels: KernelsName = "auto"
    instruction_set: str | None = None
    attention: AttentionName = "auto"
    quantization: QuantizationName = "none"
    kv_cache_dtype: KVCacheDTypeName = "auto"
    host_kv_cache_bytes: int = 0
    disk_kv_cache_bytes: int = 0
    kv_cache_dir: Path | None = None
    trace: Path | None = None
    tensor_parallel: int = 1
    sleep_after_s: float | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("device", DEVICE_NAMES),
            ("backend", BACKEND_NAMES),
            ("dtype", DTYPE_NAMES),
            ("kernels", KERNELS_NAMES),
            ("attention", ATTENTION_NAMES),
            ("speculation", SPECULATION_NAMES),
            ("quantization", QUANTIZATION_NAMES),
            ("kv_cache_dtype", KV_CACHE_DTYPE_NAMES),
        ):
            if (value := getattr(self, name)) not in known:
                raise ModelError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        is_compiled = self.kernels in ("auto", "compiled")
        if self.instruction_set is not None and not is_compiled:
            raise ModelError(
                f"instruction_set is of the compiled kernels; kernels is {self.kernels}"
            )
        if self.quantization != "none" and self.kernels == "reference":
            raise ModelError(
                f"quantization {self.quantization} is not of the reference kernels; "
                "kernels is reference"
            )
        if self.device == "cuda" and self.kernels in ("compiled", "reference"):
            raise ModelError(f"kernels {self.kernels} are the processor's; device is cuda")
        self._check_attention()
        if not 0.0 < self.gpu_memory_fraction <= 1.0:
            raise ModelError(
                f"gpu_memory_fraction must be above 0 and at most 1, not {self.gpu_memory_fraction}"
            )
        for name in ("block_size", "max_sequences", "max_waiting"):
            _require_positive(name, getattr(self, name))
        _require_positive("tensor_parallel", self.tensor_parallel)
        for name in ("kv_cache_tokens", "max_model_len", "max_waiting_per_tenant", "n_threads"):
            if getattr(self, name) is not None:
                _require_positive(name, getattr(self, name))
        self._check_tiers()
        self._check_sleep()
        self._check_draft_model()
        if self.target_itl_s is not None and not 0.0 < self.target_itl_s < float("inf"):
            raise ModelError(f"target_itl_s must be a positive number, not {self.target_itl_s}")
        if self.prefill_slowdown is not None and not 1.0 < self.prefill_slowdown < float("inf"):
            raise ModelError(f"prefill_slowdown must be above 1, not {self.prefill_slowdown}")
        if self.kv_cache_tokens is not None and self.kv_cache_tokens < self.block_size:
            raise ModelError(
                f"kv_cache_tokens ({self.kv_cache_tokens}) must hold at least one block "
                f"of {self.block_size} tokens"
            )
        if self.max_batched_tokens < self.max_sequences:
            raise ModelError(
                f"max_batched_tokens ({self.max_batched_tokens}) must be at least max_sequences "
                f"({self.max_sequences}), so that every sequence can decode in every step"
            )

    def _check_attention(self) -> None:
        if self.attention == "auto":
            return
        if self.kernels in ("compiled", "reference"):
            raise ModelError(
                f"attention {self.attention} is for a GPU; kernels {self.kernels} are the "
                "processor's"
            )
        if self.attention == "triton" and self.kernels == "torch":
            raise ModelError("attention triton is of the triton kernels; kernels is torch")

    def _check_tiers(self) -> None:
        for name in ("host_kv_cache_bytes", "disk_kv_cache_bytes"):
            if getattr(self, name) < 0:
                raise ModelError(f"{name} must be 0 (off) or more, not {getattr(self, name)}")
        if self.disk_kv_cache_bytes and not self.host_kv_cache_bytes:
            raise ModelError(
                "disk_kv_cache_bytes needs host_kv_cache_bytes: blocks go to disk through it"
            )
        if bool(self.disk_kv_cache_bytes) != (self.kv_cache_dir is not None):
            raise ModelError("disk_kv_cache_bytes and kv_cache_dir are set together or not at all")

    def _check_sleep(self) -> None:
        if self.sleep_after_s is None:
            return
        if not 0.0 < self.sleep_after_s < float("inf"):
            raise ModelError(f"sleep_after_s must be a positive number, not {self.sleep_after_s}")
        if self.kernels in ("compiled", "reference"):
            raise ModelError(
                f"sleep_after_s is for a GPU's kernels; kernels {self.kernels} are the processor's"
            )

    def _check_draft_model(self) -> None:
        if self.draft_model_dir is not None and self.speculation != "auto":
            raise ModelError(f"draft_model_dir needs speculation auto, not {self.speculation}")

    @property
    def n_blocks(self) -> int:
        """Blocks of the KV pool, where it is not sized by a GPU's memory."""
        return (self.kv_cache_tokens or DEFAULT_KV_CACHE_TOKENS) // self.block_size

    def effective_max_model_len(
        self, context_length: int, *, sliding_window: int | None = None
    ) -> int:
        """Return the most tokens of prompt and answer together.

        Within a sliding window every layer sees all of it, and beyond one nothing is served: what
        the model says is right, and the log says why its context is shorter.

        Raises:
            ModelError: ``max_model_len`` was set beyond the model's context or sliding window.
        """
        if self.max_model_len is not None and self.max_model_len > context_length:
            raise ModelError(
                f"max_model_len ({self.max_model_len}) is beyond the model's context "
                f"of {context_length} tokens"
            )
        if sliding_window is not None and (self.max_model_len or 0) > sliding_window:
            raise ModelError(
                f"max_model_len ({self.max_model_len}) is beyond the model's sliding_window of "
                f"{sliding_window} tokens, which is not implemented"
            )
        served = self.max_model_len or context_length
        if self.kv_cache_tokens is not None:
            served = min(served, self.n_blocks * self.block_size)
        if sliding_window is not None and sliding_window < served:
            logger.warning(
                "the context is cut to the model's sliding_window of %d tokens: %d would need "
                "attention that is not implemented",
                sliding_window,
                served,
            )
            return sliding_window
        return served


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A model as its config.json and generation_config.json describe it.

    sliding_window: beyond so many tokens, some layer attends to the newest only.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rotary: RotaryConfig
    context_length: int
    sliding_window: int | None
    tie_word_embeddings: bool
    eos_token_ids: frozenset[int]

    @classmethod
    def from_dir(cls, model_dir: Path) -> "ModelConfig":
        """Read and check a model directory's configuration; raises ModelError."""
        fields = JsonFields.from_file(model_dir / "config.json")
        generation_path = model_dir / "generation_config.json"
        generation = JsonFields.from_file(generation_path) if generation_path.exists() else None
        architecture = read_architecture(fields)
        family = FAMILIES[architecture]
        refuse_unimplemented(fields, family=family)
        n_layers = fields.positive_int("num_hidden_layers")
        n_heads = fields.positive_int("num_attention_heads")
        config = cls(
            architecture=architecture,
            vocab_size=fields.positive_int("vocab_size"),
            hidden_size=fields.positive_int("hidden_size"),
            intermediate_size=fields.positive_int("intermediate_size"),
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=_n_kv_heads(fields, family=family, n_heads=n_heads),
            head_dim=fields.positive_int(
                "head_dim",
                default=family.default_head_dim
                or max(1, fields.positive_int("hidden_size") // n_heads),
            ),
            rms_norm_eps=fields.positive_float("rms_norm_eps"),
            rotary=read_rotary(fields),
            context_length=fields.positive_int("max_position_embeddings"),
            sliding_window=read_sliding_window(fields, family=family, n_layers=n_layers),
            tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
            eos_token_ids=_eos_token_ids(fields, generation),
        )
        config._check_sizes()
        return config

    def _check_sizes(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ModelError(
                f"num_attention_heads ({self.n_heads}) must be a multiple of "
                f"num_key_value_heads ({self.n_kv_heads})"
            )
        if self.head_dim % 2:
            raise ModelError(f"head_dim must be even for rotary embedding, not {self.head_dim}")


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ModelError(f"{name} must be a positive integer, not {value}")


def _n_kv_heads(fields: JsonFields, *, family: Family, n_heads: int) -> int:
    """Read the number of K/V heads; null means all, and absent does too in a Llama alone."""
    is_all = family.kv_heads_may_be_absent or "num_key_value_heads" in fields.values
    return fields.positive_int("num_key_value_heads", default=n_heads if is_all else None)


def _eos_token_ids(fields: JsonFields, generation: JsonFields | None) -> frozenset[int]:
    source = generation if generation and generation.get("eos_token_id") is not None else fields
    value = source.get("eos_token_id")
    ids: list[object] = [] if value is None else value if isinstance(value, list) else [value]
    vocab_size = fields.positive_int("vocab_size")
    token_ids = frozenset(i for i in ids if isinstance(i, int) and 0 <= i < vocab_size)
    if len(token_ids) < len(ids):
        raise source.wrong("eos_token_id", expected="different ids within the vocabulary")
    return token_ids
