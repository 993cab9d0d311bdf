"""What a backend is: the thing the step loop drives. It knows token ids, never text or sockets."""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from engine_service.config import KVCacheDTypeName, QuantizationName
from engine_service.errors import EngineError, EngineLost
from engine_service.protocol import (
    NO_STANDING,
    EngineStats,
    FinishReason,
    SamplingParams,
    Standing,
    Task,
    TokenLogprob,
)
from engine_service.scheduling.token_mask import TokenMask


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One validated generation.

    key: unique among live requests of this process. prompt_token_ids: at least one id, each in
    the vocabulary. max_new_tokens: at least 1, prompt and answer together within the context.
    cache_tags: whose text it is, see ``Backend.purge``.
    mask: says before each token which ones may come; None allows all. ``sampling.n`` answers are
    made; they share the prompt's blocks and have seeds derived from the request's.
    """

    key: int
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    max_new_tokens: int
    cache_salt: str = ""
    cache_tags: tuple[str, ...] = ()
    standing: Standing = NO_STANDING
    mask: TokenMask | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Validated texts to embed: at least one, each of at least one id of the vocabulary and of
    at most ``max_model_len``. key: as an ``EngineRequest``'s."""

    key: int
    inputs: tuple[tuple[int, ...], ...]


class SequenceOutput(Struct, frozen=True, kw_only=True):
    """What one step changed for one of a request's answers, number ``choice`` of 0 to n - 1.

    token_ids: sampled in this step, an end-of-sequence token included. Either the last output of
    each answer has ``finish_reason`` set, or one has ``error``, which ends all of them and is the
    request's last. Counts are the answer's totals so far. step: the number of the step that sampled
    its tokens. waited_s: how long the request queued before it was first computed. logprobs: one
    for each of ``token_ids``, prompt_logprobs: of the next part of the prompt; both only if asked
    for.
    vectors: all of an embedding request, in the order of its inputs, each little-endian float32;
    they come with its ``finish_reason="stop"``.
    """

    key: int
    choice: int = 0
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error: EngineError | None = None
    n_cached_tokens: int = 0
    n_completion_tokens: int = 0
    step: int = 0
    waited_s: float = 0.0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    vectors: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a loaded model can take; ``max_model_len`` is bounded by context and KV pool.

    kernels: what computes its steps, such as "compiled AVX2" or "reference". quantization: what its
    weights became when they were loaded. kv_cache_dtype: what K and V are stored in.
    max_model_len: of an embedding model, most tokens of one input. embedding_size: numbers in a
    vector; None for a model that generates.
    unsupported: fields of ``SamplingParams`` that the backend knows only the default of.
    takes_masks: whether answers can be held to a grammar.
    """

    name: str
    architecture: str
    dtype: str
    device: str
    kernels: str
    backend: str
    vocab_size: int
    max_model_len: int
    block_size: int
    n_blocks: int
    max_sequences: int
    eos_token_ids: frozenset[int]
    task: Task = "generate"
    embedding_size: int | None = None
    quantization: QuantizationName = "none"
    kv_cache_dtype: KVCacheDTypeName = "auto"
    unsupported: frozenset[str] = frozenset()
    takes_masks: bool = True


class Backend(Protocol):
    """Driven by one thread, which alone may call it after construction."""

    info: ModelInfo

    def watch(self, on_lost: Callable[[EngineLost], None]) -> None:
        """Have ``on_lost`` called, once and on whatever thread, when no step can succeed any more:
        also while one hangs. A ``step`` that finds that out itself raises EngineLost."""

    def add(self, request: EngineRequest | EmbeddingRequest) -> None:
        """Queue a request. Raises RequestError or Overloaded, and then holds nothing of it.

        One for another task than the model's is a RequestError too.
        """

    def abort(self, key: int, *, choice: int | None = None) -> None:
        """End a request; its last outputs (``finish_reason="abort"``) come from the next step.

        choice: end this answer only, of which there was an output. Idempotent; what is unknown is
        ignored.
        """

    def has_work(self) -> bool:
        """True while ``step`` has something to do or to report."""

    def step(self) -> SequenceOf[SequenceOutput]:
        """Schedule, execute and sample once. A fault of one request is an output with ``error``."""

    def fail_running(self, error: EngineError) -> SequenceOf[SequenceOutput]:
        """End every request that was part of the step that raised, free their blocks, go on."""

    def purge(self, tag: str) -> int:
        """Forget the cached blocks of all requests with this tag so far; return how many.

        Content that no live request reads is overwritten. What live requests leave in the cache
        later is not covered: a caller that wants nothing kept ends them first.
        """

    def rest(self) -> bool:
        """Without work, do a part of giving memory back; return whether there is more to do.

        What is added afterwards has ``step`` take the memory again, a part at a time too: nobody
        waits long for an answer to anything else. Where there is none to be had, that request's
        last output is Overloaded.
        """

    def lend(self, *, may_hold: bool) -> None:
        """Say whether it may have its device's memory, as it may until told otherwise.

        Where not, what has begun is finished, ``step`` then gives the memory back, and what waits
        goes on waiting: so long that it is refused as Overloaded at some time. Where it may again,
        ``step`` takes the memory for whatever waits.
        """

    def stats(self) -> EngineStats:
        """Counters now; the loop adds uptime and memory."""
