"""Wire messages between the platform and an engine process, and how they are framed.

A frame is a 4-byte big-endian length and one msgpack map, tagged by ``type``. This module needs
the standard library and msgspec only, because both sides of the socket import it; it must not
know how a message is acted on.

Order on a connection: ``Hello`` → ``Welcome``; then any number of interleaved requests, each
``Prepare`` → ``Prepared`` | ``Failed``, ``Start`` → deltas in ``StepOutputs`` frames and exactly
one of ``Finished`` | ``Failed``; ``Abort`` at any moment leads to ``Finished`` with
``finish_reason="abort"`` once the sequence has left the batch. A ``Start`` is never sent for a
request that was not ``Prepared`` on the same connection.
"""

import struct
from typing import Final, Literal

import msgspec

PROTOCOL_VERSION: Final = 1
MAX_TOP_LOGPROBS: Final = 20
MAX_FRAME_BYTES: Final = 8 * 1024 * 1024
HEADER: Final = struct.Struct(">I")

FinishReason = Literal["stop", "length", "abort"]
ErrorKind = Literal["request", "overloaded", "engine"]


class Message(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag_field="type",
    tag=lambda name: name.lower(),
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    """Base of every tagged message; unknown fields are refused, so that versions cannot drift."""


class Value(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Base of the plain values that messages carry."""


# -- prompts and parameters ----------------------------------------------------------------------


class ChatMessage(Value, frozen=True):
    """One turn of a conversation; ``content`` is plain text (the door joins text parts)."""

    role: str
    content: str
    name: str | None = None


class ChatPrompt(Message, frozen=True):
    """Rendered with the model's own chat template, generation prompt added."""

    messages: tuple[ChatMessage, ...]


class TextPrompt(Message, frozen=True):
    """Tokenized as it stands, with the special tokens the tokenizer adds by itself."""

    text: str


class TokenPrompt(Message, frozen=True):
    """Token ids taken as they are."""

    token_ids: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class SamplingParams(Value, frozen=True):
    """How the next token is chosen. The engine validates; it never clamps.

    temperature: 0 (greedy) to 2. top_p: (0, 1]. top_k: 0 turns it off. seed: the same seed gives
    the same tokens whatever else is in the batch. stop: strings that end the text, themselves
    left out of it. ignore_eos: for benchmarks. n: answers per prompt; above 1 is refused until
    the engine forks sequences.

    min_p: [0, 1], drops tokens less likely than this part of the best; applied with top_k and
    top_p, after the temperature. presence_penalty, frequency_penalty: -2 to 2, subtracted for
    tokens of the answer, once or each time. repetition_penalty: 0.01 to 100, divides or multiplies
    the logits of tokens of prompt and answer; 1 is off. logit_bias: pairs of token id and -100 to
    100. stop_token_ids: end the answer like an end of sequence. min_tokens: no end token and no
    stop string before so many. logprobs, prompt_logprobs: None, or how many of the best tokens to
    report, 0 to 20, beside each token of the answer or of the prompt.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class Standing(Value, frozen=True):
    """How a request stands among the others that wait; all of it is the server's word.

    tenant: opaque; service is shared evenly between tenants. weight: a request of weight 2 costs
    its tenant half as much. priority: the higher goes first, whatever tenants have had.
    deadline_s: seconds from its start after which it is failed if it waits; None never.
    """

    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    deadline_s: float | None = None


NO_STANDING: Final = Standing()


# -- platform → engine ---------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """First frame of a connection."""

    protocol_version: int
    client: str


class Prepare(Message, frozen=True):
    """Render, tokenize and validate; the answer is ``Prepared`` or ``Failed``.

    max_tokens: what the client asked for; None means as much as the context leaves.
    cache_salt: seeds the prefix-cache hash chain; the server derives it from the tenant.
    """

    request_id: str
    prompt: Prompt
    sampling: SamplingParams
    max_tokens: int | None = None
    cache_salt: str = ""
    standing: Standing = NO_STANDING


class Start(Message, frozen=True):
    """Run a prepared request for at most ``max_new_tokens``, the number that was reserved."""

    request_id: str
    max_new_tokens: int


class Abort(Message, frozen=True):
    """Stop a request in whatever state it is; idempotent, unknown ids are ignored."""

    request_id: str


class Ping(Message, frozen=True):
    """Answered by the step thread, so that a ``Pong`` proves that the step loop turns."""

    nonce: int


# -- engine → platform ---------------------------------------------------------------------------


class Welcome(Message, frozen=True):
    """Answer to ``Hello``: who is here.

    epoch: number of this engine start; frames of another epoch are dropped by the client.
    max_model_len: most tokens of prompt and answer together, already bounded by the KV pool.
    """

    protocol_version: int
    epoch: int
    pid: int
    model: str
    architecture: str
    dtype: str
    device: str
    backend: str
    vocab_size: int
    max_model_len: int
    block_size: int
    n_blocks: int
    max_sequences: int


class Prepared(Message, frozen=True):
    """max_new_tokens: the client's ``max_tokens``, or what the context leaves."""

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
    and theirs, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Delta(Value, frozen=True):
    """New text of one request. ``n_tokens`` were sampled for it; text may be empty while the
    detokenizer holds back an unfinished character or a possible stop string.

    Only if asked for: ``logprobs``, one for each of the ``n_tokens``; ``prompt_logprobs``, for the
    prompt's second token and those after it, a part at a time, all before the answer.
    """

    request_id: str
    text: str
    n_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


class Finished(Value, frozen=True):
    """The one good end. Counts are final and authoritative; ``text`` is what was held back.

    A token that only completed a stop string counts as completion; tokens sampled after the end
    was known do not. ``logprobs`` are of the counted tokens that no delta had.
    """

    request_id: str
    finish_reason: FinishReason
    n_prompt_tokens: int
    n_cached_tokens: int
    n_completion_tokens: int
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()


class FailedRequest(Value, frozen=True):
    """The one bad end of a started request, with the tokens it had produced by then."""

    request_id: str
    error: WireError
    n_completion_tokens: int = 0


class StepOutputs(Message, frozen=True):
    """All that one step changed for the requests of this connection, in one frame."""

    epoch: int
    deltas: tuple[Delta, ...] = ()
    finished: tuple[Finished, ...] = ()
    failed: tuple[FailedRequest, ...] = ()


class Failed(Message, frozen=True):
    """Answer to a ``Prepare`` (request_id set) or to the connection itself (None) before close."""

    error: WireError
    request_id: str | None = None


class EngineStats(Value, frozen=True):
    """Counters since start unless the name says otherwise; blocks are exact.

    n_blocks_free counts blocks that no sequence holds, those kept by the prefix cache included.
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
    last_step_ms: float = 0.0
    uptime_s: float = 0.0
    rss_bytes: int = 0


class Pong(Message, frozen=True):
    """Answer to ``Ping`` from the step thread."""

    nonce: int
    epoch: int
    stats: EngineStats
    draining: bool = False


ToEngine = Hello | Prepare | Start | Abort | Ping
FromEngine = Welcome | Prepared | StepOutputs | Failed | Pong


class FrameError(ValueError):
    """The bytes on a connection are not frames of this protocol; that connection is closed."""


_encoder = msgspec.msgpack.Encoder()
_to_engine_decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine_decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode_frame(message: Message) -> bytes:
    """Return header and body of one message.

    Raises:
        FrameError: the body is larger than ``MAX_FRAME_BYTES``.
    """
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return HEADER.pack(len(body)) + body


def frame_length(header: bytes) -> int:
    """Return the body length that a header announces.

    Raises:
        FrameError: it is zero or over ``MAX_FRAME_BYTES``.
    """
    (length,) = HEADER.unpack(header)
    if not 0 < length <= MAX_FRAME_BYTES:
        raise FrameError(f"frame of {length} bytes is outside 1..{MAX_FRAME_BYTES}")
    return int(length)


def decode_to_engine(body: bytes) -> ToEngine:
    """Decode a frame body sent by the platform; raises FrameError if it is not a known message."""
    try:
        return _to_engine_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(str(error)) from error


def decode_from_engine(body: bytes) -> FromEngine:
    """Decode a frame body sent by the engine; raises FrameError if it is not a known message."""
    try:
        return _from_engine_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(str(error)) from error
