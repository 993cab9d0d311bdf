"""What an engine tells: plain values that may cross rooms."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from apps.registry.types import Artifact

FinishReason = Literal["stop", "length", "abort"]
Task = Literal["generate", "embed"]
TakeEpoch = Callable[[int], Awaitable[int]]  # counts a slot's next start, durably

REPLICAS_STAMP: Final = "replicas"
QUARANTINE_STAMP: Final = "quarantine"
REMOTE_KEY_PURPOSE: Final = "nano-llm: keys of remote servers"

# How bad each state of an engine process is, in the names of the admin's badges.
STATE_LABELS: Final = {
    "Fetching": "info",
    "Starting": "info",
    "Ready": "success",
    "Asleep": "success",
    "Waiting for memory": "info",
    "Unresponsive": "danger",
    "Backing off": "warning",
    "Crash loop": "danger",
    "Draining": "warning",
    "Stopped": "",
    "Failed": "danger",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """Who answered at the socket.

    max_model_len: most tokens of prompt and answer together; of an embedding model, of one input.
    embedding_size: numbers in a vector, None where the model generates or nobody knows it.
    """

    epoch: int
    pid: int
    model: str
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
    task: Task
    embedding_size: int | None
    quantization: Literal["none", "int8", "fp8"]
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """``max_new_tokens``: what the client asked for, or what the context leaves."""

    n_prompt_tokens: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """What the model said of one token; ``top`` are the best ones, best first, with theirs."""

    token_id: int
    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """A piece of an answer's call number ``index``: its name at first, then its arguments."""

    index: int
    name: str | None = None
    arguments: str = ""


class AnswerDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What is new of one answer, number ``index`` of those to a prompt.

    ``n_tokens`` were sampled since the delta before. finish_reason: set in its last, and ``stop``
    beside it where a stop string ended the answer. logprobs, prompt_logprobs: only if asked for,
    the latter of the prompt's second token and those after it. A struct, because one is made for
    every token: a frozen dataclass takes five times as long.
    """

    index: int = 0
    text: str = ""
    n_tokens: int = 0
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop: str | None = None

    @property
    def is_empty(self) -> bool:
        """True where there is nothing to show."""
        pieces = (self.text, self.reasoning, self.tool_calls, self.logprobs, self.prompt_logprobs)
        return self.finish_reason is None and not any(pieces)

    def joined(self, later: "AnswerDelta") -> "AnswerDelta":
        """Return one delta for two of the same answer."""
        return msgspec.structs.replace(
            later,
            text=self.text + later.text,
            n_tokens=self.n_tokens + later.n_tokens,
            reasoning=self.reasoning + later.reasoning,
            tool_calls=self.tool_calls + later.tool_calls,
            logprobs=self.logprobs + later.logprobs,
            prompt_logprobs=self.prompt_logprobs + later.prompt_logprobs,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """How a generation ended, the last of its answers; the counts are final and of all of them."""

    finish_reason: FinishReason
    n_prompt_tokens: int
    n_cached_tokens: int
    n_completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingResult:
    """``vectors``: one for each input, packed as little-endian float32."""

    vectors: tuple[bytes, ...]
    n_prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedPrompt:
    """``strings``: each id's name in the vocabulary, only if asked for."""

    token_ids: tuple[int, ...]
    strings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnd:
    """How a request ended in an engine, by the engine's own record. Counts are of all its answers.

    key: tells one request of an engine's start from another; an embedding request of many inputs
    has several under one id. finish_reason: empty where there is none, and ``error_code`` says why.
    first_step, last_step: those that made its first and last token, 0 where it made none.
    """

    key: int
    request_id: str
    n_prompt_tokens: int
    n_cached_tokens: int
    n_completion_tokens: int
    finish_reason: str
    error_code: str
    first_step: int
    last_step: int
    waited_ms: float
    started_at: datetime
    first_token_at: datetime | None
    ended_at: datetime


# Error codes of a request that was cut off: its client was shown no more than was made, maybe less.
ENGINE_DIED: Final = "engine_died"
CONNECTION_LOST: Final = "connection_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalPlace:
    """How far a journal was read: up to the byte ``log_end`` of its log ``log_number``."""

    log_number: int
    log_end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTarget:
    """A model at a server that is not ours, and how to ask it.

    key_sealed: what it wants to see of us, as ``core.sealing`` has it for ``REMOTE_KEY_PURPOSE``;
    empty for nothing. ca_file: whose certificates are believed, empty for those of this machine.
    max_concurrency: of one process. first_byte_timeout_s, idle_timeout_s: until a stream begins,
    and between its pieces. revision: raised with every change.
    """

    base_url: str
    model: str
    task: Task
    context_length: int
    key_sealed: str = field(repr=False)
    ca_file: str
    max_concurrency: int
    connect_timeout_s: float
    first_byte_timeout_s: float
    idle_timeout_s: float
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What the agent should run in one slot. A spec that differs in anything is another engine.

    process_id: the slot's row. revision: raised to have an equal engine started anew. arguments:
    of the engine's command line, without those that the agent adds itself. environment: beside the
    agent's own. remote: it runs elsewhere, and is watched only. artifacts: of which the files must
    be in the node's cache first, and stay there for as long as it is wanted.
    """

    process_id: int
    name: str
    revision: int
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    remote: RemoteTarget | None = None
    artifacts: tuple[Artifact, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineObservation:
    """What the agent knows of one slot; field by field a row of EngineProcess."""

    process_id: int
    state: str
    pid: int | None
    epoch: int
    socket_path: str
    log_path: str
    started_at: datetime | None
    ready_at: datetime | None
    last_pong_at: datetime | None
    ping_ms: float | None
    n_restarts: int
    last_error: str
    info: dict[str, Any]
    stats: dict[str, Any]
    tries_again_at: datetime | None = None
    n_fetched_bytes: int | None = None
    n_fetch_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What an engine has of devices where some sleep. n_bytes: what it takes of each to be awake,
    beyond what it keeps of it asleep. sleeps: else it is awake for as long as it lives."""

    device_ids: tuple[int, ...]
    n_bytes: int
    sleeps: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Who shares devices, by the rows of their slots, and by device what those that sleep there may
    have awake together."""

    shares: Mapping[int, Share] = field(default_factory=dict)
    room_bytes: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """Of a device's memory, in bytes. own: for single replicas, whatever the others do. shared:
    for the deployment that is awake of those whose ``n_sharing`` replicas sleep there."""

    own_bytes: int
    shared_bytes: int
    n_sharing: int


DeviceKind = Literal["cpu", "cuda", "disk"]

# What an engine of ours computes on, the one that a deployment is given if it does not say first;
# one for embeddings computes on the processor only.
ENGINE_DEVICES: Final[tuple[DeviceKind, ...]] = ("cuda", "cpu")
EMBEDDING_DEVICES: Final[tuple[DeviceKind, ...]] = ("cpu",)
# And what the nano-vllm package does, and which models it has; as the engine's backend checks.
NANOVLLM_DEVICE: Final[DeviceKind] = "cuda"
NANOVLLM_ARCHITECTURES: Final = frozenset({"Qwen3ForCausalLM"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """A device of a machine and its memory, or its disk. uid: tells it from the machine's others
    for good. auto_dtype: what an engine computes in there if it may choose; a disk has none."""

    kind: DeviceKind
    index: int
    uid: str
    name: str
    total_bytes: int
    free_bytes: int
    auto_dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """A machine that runs engines, as its agent sees it now. n_cores: those that it may use."""

    name: str
    n_cores: int
    devices: tuple[DeviceReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashSeen:
    """An engine of ours that ended though nobody had asked for it. log_end: its last lines."""

    engine_name: str
    epoch: int
    at: datetime
    reason: str
    log_end: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A request that an engine had when it was lost. digest: the same for equal requests."""

    tenant_id: int
    digest: str
    deployment_name: str
    engine_name: str
    epoch: int
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """Digests of requests. refused: until when. suspected: of those that were at a death."""

    refused: Mapping[str, datetime]
    suspected: frozenset[str]
