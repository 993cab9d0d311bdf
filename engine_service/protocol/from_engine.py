"""Messages from the engine to the platform."""

from typing import Literal

from engine_service.protocol.base import Message, Value

FinishReason = Literal["stop", "length", "abort"]
ErrorKind = Literal["request", "overloaded", "engine"]
Task = Literal["generate", "embed"]
Quantization = Literal["none", "int8", "fp8"]
KVCacheDType = Literal["auto", "fp8"]


class Welcome(Message, frozen=True):
    """Answer to ``Hello``: who is here.

    epoch: number of this engine start; frames of another epoch are dropped by the client.
    max_model_len: most tokens of prompt and answer together, already bounded by the KV pool; where
    the task is ``embed``, of one input. embedding_size: numbers in a vector, None unless it is.
    kernels: what computes its steps, such as "compiled AVX2" or "reference". quantization: what the
    weights became when they were loaded. kv_cache_dtype: what K and V are stored in; ``auto`` is
    what they are computed in.
    """

    protocol_version: int
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
    task: Task = "generate"
    embedding_size: int | None = None
    quantization: Quantization = "none"
    kv_cache_dtype: KVCacheDType = "auto"


class Prepared(Message, frozen=True):
    """max_new_tokens: of each answer, the client's ``max_tokens``, or what the context leaves."""

    request_id: str
    n_prompt_tokens: int
    max_new_tokens: int


class WireError(Value, frozen=True):
    """kind: ``request`` is the client's fault (``param`` names the field), ``overloaded`` may be
    retried after ``retry_after_s``, ``engine`` is the engine's own fault."""

    kind: ErrorKind
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


class TokenLogprob(Value, frozen=True):
    """What the model said of one token, before any sampling parameter; ``top`` are the best ids
    and theirs, best first. token, top_tokens: the bytes that these ids stand for."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    token: bytes = b""
    top_tokens: tuple[bytes, ...] = ()


class ToolCallDelta(Value, frozen=True):
    """A piece of the answer's call number ``index``: its name at first, then its arguments, which
    joined are a JSON text."""

    index: int
    name: str | None = None
    arguments: str = ""


class Delta(Value, frozen=True):
    """What is new of one answer, number ``index`` of the request's ``n``. ``n_tokens`` were sampled
    for it; text may be empty while the detokenizer holds back an unfinished character or a possible
    stop string. ``finish_reason`` is set in an answer's last delta where it ends before the others;
    the end of the last is the request's ``Finished``. ``stop``: the stop string that ended it.

    reasoning: what the model thought before its answer, as its template marks it; tool_calls: taken
    out of the text of a request with tools.

    Only if asked for: ``logprobs``, one for each of the ``n_tokens``; ``prompt_logprobs``, for the
    prompt's second token and those after it, a part at a time, all before the answer.
    """

    request_id: str
    text: str
    n_tokens: int
    index: int = 0
    finish_reason: FinishReason | None = None
    stop: str | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


class Finished(Value, frozen=True):
    """The one good end: the last answer's. Counts are final and authoritative, of all answers
    together, the prompt once.

    ``index``, ``finish_reason``, ``stop``, ``text``, ``reasoning`` and ``tool_calls``, which were
    held back, and ``logprobs``, of the counted tokens that no delta had, are that answer's. A token
    that only completed a stop string counts as completion; tokens sampled after the end was known
    do not.
    """

    request_id: str
    finish_reason: FinishReason
    n_prompt_tokens: int
    n_cached_tokens: int
    n_completion_tokens: int
    index: int = 0
    stop: str | None = None
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class FailedRequest(Value, frozen=True):
    """The one bad end of a started request, with the tokens that its answers had by then."""

    request_id: str
    error: WireError
    n_completion_tokens: int = 0


class StepOutputs(Message, frozen=True):
    """All that one step changed for the requests of this connection, in one frame."""

    epoch: int
    deltas: tuple[Delta, ...] = ()
    finished: tuple[Finished, ...] = ()
    failed: tuple[FailedRequest, ...] = ()


class Embedded(Message, frozen=True):
    """Answer to an ``Embed``: for each input its vector, packed as little-endian float32."""

    request_id: str
    vectors: tuple[bytes, ...]
    n_prompt_tokens: int


class Tokenized(Message, frozen=True):
    """Answer to ``Tokenize``; ``strings`` only if asked for, one for each id."""

    request_id: str
    token_ids: tuple[int, ...]
    strings: tuple[str, ...] = ()


class TokenizedInputs(Message, frozen=True):
    """Answer to ``TokenizeInputs``, in the order of its inputs."""

    request_id: str
    inputs: tuple[tuple[int, ...], ...]


class Detokenized(Message, frozen=True):
    """Answer to ``Detokenize``."""

    request_id: str
    text: str


class Failed(Message, frozen=True):
    """Answer to a ``Prepare``, an ``Embed`` or a question about text (request_id set), or to the
    connection itself (None) before close."""

    error: WireError
    request_id: str | None = None


class Spread(Value, frozen=True):
    """Of values in the unit that the field's name says."""

    median: float = 0.0
    worst: float = 0.0


class StepStats(Value, frozen=True):
    """The last ``n_steps`` steps that computed something, and what their parts took.

    wait_ms: how long the latest admitted requests had queued.
    """

    n_steps: int
    step_ms: Spread
    schedule_ms: Spread
    forward_ms: Spread
    sample_ms: Spread
    update_ms: Spread
    wait_ms: Spread
    mean_sequences: float
    mean_decode_tokens: float
    mean_prefill_tokens: float


class TierStats(Value, frozen=True):
    """What is kept of the prefix cache below the KV pool, in host memory and on disk.

    Of blocks since start: n_host_hits, n_disk_hits came back from there. n_spilled went to host
    memory, n_written to disk. n_dropped found no room or no disk that took them. n_unreadable were
    not on disk as they had been written, and were computed again.
    """

    host_bytes: int = 0
    host_bytes_total: int = 0
    disk_bytes: int = 0
    disk_bytes_total: int = 0
    n_host_hits: int = 0
    n_disk_hits: int = 0
    n_spilled: int = 0
    n_written: int = 0
    n_host_evictions: int = 0
    n_disk_evictions: int = 0
    n_dropped: int = 0
    n_unreadable: int = 0


class EngineStats(Value, frozen=True):
    """Counters since start unless the name says otherwise; blocks are exact.

    n_blocks_free counts blocks that no sequence holds, those kept by the prefix cache included.
    n_drafted_tokens: guessed by speculation and computed; n_accepted_tokens: those that were right.
    oldest_wait_ms: of those that wait now to be computed for the first time, how long the first has
    waited; those below the usual priority, which are batches', are left out.
    tiers: None where nothing is kept below the KV pool.
    is_asleep: its memory on the GPU is given back, or not all taken again yet. is_given_back: none
    of it is taken. waits_for_memory: requests wait for it, and it is not this engine's turn.
    saved_bytes: of host memory, where its weights are kept once it has slept.
    """

    n_running: int = 0
    n_waiting: int = 0
    n_blocks_total: int = 0
    n_blocks_free: int = 0
    n_blocks_cached: int = 0
    n_steps: int = 0
    n_preemptions: int = 0
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    n_completion_tokens: int = 0
    n_finished: int = 0
    n_aborted: int = 0
    n_failed: int = 0
    n_drafted_tokens: int = 0
    n_accepted_tokens: int = 0
    last_step_ms: float = 0.0
    uptime_s: float = 0.0
    rss_bytes: int = 0
    steps: StepStats | None = None
    oldest_wait_ms: float = 0.0
    tiers: TierStats | None = None
    is_asleep: bool = False
    is_given_back: bool = False
    waits_for_memory: bool = False
    saved_bytes: int = 0


class Pong(Message, frozen=True):
    """Answer to ``Ping`` from the step thread."""

    nonce: int
    epoch: int
    stats: EngineStats
    draining: bool = False


class Purged(Message, frozen=True):
    """Answer to ``Purge`` from the step thread."""

    nonce: int
    epoch: int
    n_blocks: int


TextAnswer = Tokenized | TokenizedInputs | Detokenized

FromEngine = Welcome | Prepared | StepOutputs | Embedded | TextAnswer | Failed | Pong | Purged
