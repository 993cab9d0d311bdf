"""What memory a replica needs, reckoned before it is started. Pure; docs/placement.md has the
figures of real engines beside it."""

from dataclasses import dataclass, replace
from typing import Final, Literal

from apps.registry.types import ModelShape

# Python, the tensor library and the tokenizer, as measured on engines that hold next to nothing.
RUNTIME_BYTES: Final = 320 * 2**20
# On a GPU: what the driver and compiled kernels take, and what an engine leaves beside its steps.
GPU_RUNTIME_BYTES: Final = 1024 * 2**20
# Of that, what is still there while it sleeps: the driver's context and the kernels. The rest goes
# with the graphs, as do weights, cache and steps.
GPU_ASLEEP_BYTES: Final = 512 * 2**20
# Of each of several that hold a model together all of it: NCCL's buffers, which nobody has measured
# here, stay too.
GPU_ASLEEP_AMONG_SEVERAL_BYTES: Final = GPU_RUNTIME_BYTES
# What FlashInfer works in, of each model that it attends for, asleep too.
FLASHINFER_BYTES: Final = 280 * 2**20
# The C library gives back blocks from this size on; of smaller ones it may keep what was freed,
# until the engine has loaded and tells it not to.
_GIVEN_BACK_FROM_BYTES: Final = 32 * 2**20
_DTYPE_BYTES: Final = {"float32": 4.0, "bfloat16": 2.0}
# int8 has a float32 scale for 32 of them; that of fp8, one for an output, is next to nothing.
_QUANTIZED_BYTES: Final = {"int8": 1 + 4 / 32, "fp8": 1.0}
# Cast as they are, without a scale.
_KV_CACHE_BYTES: Final = {"fp8": 1.0}
_FLOAT32_BYTES: Final = 4
# Logits, what sampling makes of them, and a copy to sort.
_LOGIT_COPIES: Final = 4
# As parts send them to each other, and in the order of the vocabulary; of the model's type.
_GATHERED_COPIES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSizes:
    """What an engine is told that its memory depends on. dtype: ``auto`` counts as the widest that
    it may become. kv_cache_dtype: ``auto`` is that type. attention: what ``auto`` will be nobody
    knows, and counts as nothing. n_parts: that hold the model together, each on a device of its
    own. is_on_gpu: it is on no other device."""

    dtype: str
    quantization: str
    kv_cache_tokens: int
    max_sequences: int
    max_batched_tokens: int
    kv_cache_dtype: str = "auto"
    attention: str = "auto"
    n_parts: int = 1
    is_on_gpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """In bytes, of each of its parts. loading: beside the rest until it is ready, of the weights as
    they are read. steps: what one step needs. runtime: reserved for the process itself.
    workspace: what a library attends in. draft: of its draft model, beside all these; None where it
    has none."""

    weights: int
    kv_cache: int
    loading: int
    steps: int
    runtime: int = RUNTIME_BYTES
    workspace: int = 0
    draft: "Estimate | None" = None

    def all_weights(self, *, n_parts: int) -> int:
        """Return those of so many parts together, and of its draft model, which the first has."""
        own = n_parts * self.weights
        return own if self.draft is None else own + self.draft.weights

    @property
    def lasting(self) -> int:
        """What it holds for as long as it is ready, whatever it does."""
        own = self.weights + self.kv_cache
        return own if self.draft is None else own + self.draft.lasting

    @property
    def ready(self) -> int:
        """What it needs once it is ready."""
        own = self.weights + self.kv_cache + self.steps + self.runtime + self.workspace
        return own if self.draft is None else own + self.draft.ready

    @property
    def total(self) -> int:
        """The most that it needs, while it loads."""
        most = self.ready + self.loading
        return most if self.draft is None else most + self.draft.loading

    def with_draft(self, draft: "Estimate") -> "Estimate":
        """Return it with a draft model, which the same process computes."""
        return replace(self, draft=replace(draft, runtime=0))


def estimate(
    *,
    n_parameters: int,
    shape: ModelShape | None,
    task: Literal["generate", "embed"],
    sizes: EngineSizes,
) -> Estimate:
    """Reckon one replica. shape: None where nobody knows it; then only its weights count."""
    width = _DTYPE_BYTES.get(sizes.dtype, _DTYPE_BYTES["float32"])
    runtime = GPU_RUNTIME_BYTES if sizes.is_on_gpu else RUNTIME_BYTES
    if shape is None:
        n_bytes = round(n_parameters * width)
        return Estimate(weights=n_bytes, kv_cache=0, loading=0, steps=0, runtime=runtime)
    if task == "embed":
        return _encoder(n_parameters, shape, sizes, width=width)
    shape = _part(shape, sizes.n_parts)
    products, embedding = _products(shape), shape.vocab_size * shape.hidden_size
    head = -(-shape.vocab_size // sizes.n_parts) * shape.hidden_size
    packed = _QUANTIZED_BYTES.get(sizes.quantization, width)
    # The compiled kernels keep the head in an order of its own, also where it is the embedding.
    weights = (shape.n_layers * sum(products) + head) * packed + embedding * width
    small = [n * width for n in products if n * width < _GIVEN_BACK_FROM_BYTES]
    as_read = (shape.n_layers * sum(products) + head) * width
    n_logits = sizes.max_sequences * shape.vocab_size
    n_kept = 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * sizes.kv_cache_tokens
    gathered = _GATHERED_COPIES * width if sizes.n_parts > 1 else 0
    return Estimate(
        weights=round(weights),
        kv_cache=round(n_kept * _KV_CACHE_BYTES.get(sizes.kv_cache_dtype, width)),
        loading=round(max(shape.n_layers * sum(small), as_read - weights)),
        steps=_FLOAT32_BYTES * (sizes.max_batched_tokens * _row(shape) + n_logits * _LOGIT_COPIES)
        + round(n_logits * gathered),
        runtime=runtime,
        workspace=FLASHINFER_BYTES if sizes.attention == "flashinfer" else 0,
    )


def _part(shape: ModelShape, n_parts: int) -> ModelShape:
    """Return the sizes of one of so many parts: fewer heads and inner values, a K/V head at least.
    Each has all of the embedding, and logits of the whole vocabulary."""
    return replace(
        shape,
        n_heads=shape.n_heads // n_parts,
        n_kv_heads=max(1, shape.n_kv_heads // n_parts),
        intermediate_size=shape.intermediate_size // n_parts,
    )


def _encoder(n_parameters: int, shape: ModelShape, sizes: EngineSizes, *, width: float) -> Estimate:
    """Of an embedding model, which holds no cache and is packed in place."""
    n_scores = shape.n_heads * sizes.max_batched_tokens**2
    return Estimate(
        weights=round(n_parameters * width),
        kv_cache=0,
        loading=round(shape.n_layers * sum(_products(shape)) * width),
        steps=_FLOAT32_BYTES * (sizes.max_batched_tokens * _row(shape) + n_scores),
    )


def _products(shape: ModelShape) -> tuple[int, int, int, int]:
    """Return how many weights a layer's products have, as an engine joins them."""
    query = shape.n_heads * shape.head_dim
    return (
        (query + 2 * shape.n_kv_heads * shape.head_dim) * shape.hidden_size,
        query * shape.hidden_size,
        2 * shape.intermediate_size * shape.hidden_size,
        shape.intermediate_size * shape.hidden_size,
    )


def _row(shape: ModelShape) -> int:
    """Return how many numbers a token of a step needs."""
    query = shape.n_heads * shape.head_dim
    return 4 * (shape.hidden_size + query + shape.intermediate_size)
