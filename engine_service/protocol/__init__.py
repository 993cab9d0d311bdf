"""Wire messages between the platform and an engine process, and how they are framed.

A frame is a 4-byte big-endian length and one msgpack map, tagged by ``type``. This module needs
the standard library and msgspec only, because both sides of the socket import it; it must not
know how a message is acted on.

Order on a connection: ``Hello`` → ``Welcome``; then any number of interleaved requests, each
``Prepare`` → ``Prepared`` | ``Failed``, ``Start`` → deltas in ``StepOutputs`` frames and exactly
one of ``Finished`` | ``Failed``; ``Abort`` at any moment leads to ``Finished`` with
``finish_reason="abort"`` once the sequence has left the batch. A ``Start`` is never sent for a
request that was not ``Prepared`` on the same connection.

With ``n`` answers the deltas of all come interleaved, each with its ``index``. One that ends before
the others says so in its last delta, and the end of the last is ``Finished``; what fails or aborts
the request ends them all.

An engine of an embedding model takes ``Embed`` → ``Embedded`` | ``Failed`` instead; one that is
aborted is ``Failed``, or not answered at all if it had not got as far as the step thread.

Either engine answers questions about text: ``Tokenize`` → ``Tokenized``, ``TokenizeInputs`` →
``TokenizedInputs`` (of an embedding model), ``Detokenize`` → ``Detokenized``, or ``Failed``.
"""

from typing import Final

from engine_service.protocol.base import (
    Message,
    Value,
)
from engine_service.protocol.frames import (
    HEADER,
    MAX_FRAME_BYTES,
    FrameError,
    decode_from_engine,
    decode_to_engine,
    encode_frame,
    frame_length,
)
from engine_service.protocol.from_engine import (
    Delta,
    Detokenized,
    Embedded,
    EngineStats,
    ErrorKind,
    Failed,
    FailedRequest,
    Finished,
    FinishReason,
    FromEngine,
    Pong,
    Prepared,
    Purged,
    Spread,
    StepOutputs,
    StepStats,
    Task,
    TextAnswer,
    TierStats,
    Tokenized,
    TokenizedInputs,
    TokenLogprob,
    ToolCallDelta,
    Welcome,
    WireError,
)
from engine_service.protocol.parameters import (
    MAX_CACHE_TAG_CHARS,
    MAX_CACHE_TAGS,
    MAX_DETOKENIZE_TOKENS,
    MAX_EMBED_INPUTS,
    MAX_TOKENIZE_INPUTS,
    MAX_TOP_LOGPROBS,
    NO_STANDING,
    ChatMessage,
    ChatPrompt,
    EmbedInput,
    OutputFormat,
    Prompt,
    SamplingParams,
    Standing,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolCall,
    ToolChoice,
    ToolUse,
)
from engine_service.protocol.to_engine import (
    Abort,
    Detokenize,
    Embed,
    Hello,
    Ping,
    Prepare,
    Purge,
    Start,
    TextQuestion,
    ToEngine,
    Tokenize,
    TokenizeInputs,
)

PROTOCOL_VERSION: Final = 2

__all__ = [
    "HEADER",
    "MAX_CACHE_TAGS",
    "MAX_CACHE_TAG_CHARS",
    "MAX_DETOKENIZE_TOKENS",
    "MAX_EMBED_INPUTS",
    "MAX_FRAME_BYTES",
    "MAX_TOKENIZE_INPUTS",
    "MAX_TOP_LOGPROBS",
    "NO_STANDING",
    "PROTOCOL_VERSION",
    "Abort",
    "ChatMessage",
    "ChatPrompt",
    "Delta",
    "Detokenize",
    "Detokenized",
    "Embed",
    "EmbedInput",
    "Embedded",
    "EngineStats",
    "ErrorKind",
    "Failed",
    "FailedRequest",
    "FinishReason",
    "Finished",
    "FrameError",
    "FromEngine",
    "Hello",
    "Message",
    "OutputFormat",
    "Ping",
    "Pong",
    "Prepare",
    "Prepared",
    "Prompt",
    "Purge",
    "Purged",
    "SamplingParams",
    "Spread",
    "Standing",
    "Start",
    "StepOutputs",
    "StepStats",
    "Task",
    "TextAnswer",
    "TextPrompt",
    "TextQuestion",
    "TierStats",
    "ToEngine",
    "TokenLogprob",
    "TokenPrompt",
    "Tokenize",
    "TokenizeInputs",
    "Tokenized",
    "TokenizedInputs",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "ToolUse",
    "Value",
    "Welcome",
    "WireError",
    "decode_from_engine",
    "decode_to_engine",
    "encode_frame",
    "frame_length",
]
