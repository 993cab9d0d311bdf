"""Answers and events of ``POST /v1/messages``. Names are those that clients know."""

import msgspec

from apps.engines.types import GenerationResult
from apps.gateway.answer_parts import AnswerParts, Part
from apps.gateway.rest.wording import MessagesErrorBody


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """Nothing is signed here; clients expect the field."""

    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: msgspec.Raw


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    thinking: str


class InputDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    partial_json: str


Block = TextBlock | ThinkingBlock | ToolUseBlock


class Usage(msgspec.Struct, kw_only=True):
    """``input_tokens`` are those that were computed: without those found in the prefix cache."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0


class Message(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    id: str
    role: str = "assistant"
    model: str
    content: tuple[Block, ...] = ()
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: Usage


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    message: Message


class Ping(msgspec.Struct, tag_field="type", tag="ping"):
    """Says that the connection lives; clients pass over it."""


class BlockStart(msgspec.Struct, kw_only=True, tag_field="type", tag="content_block_start"):
    index: int
    content_block: Block


class BlockDelta(msgspec.Struct, kw_only=True, tag_field="type", tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | InputDelta


class BlockStop(msgspec.Struct, kw_only=True, tag_field="type", tag="content_block_stop"):
    index: int


class Stop(msgspec.Struct, kw_only=True):
    stop_reason: str | None
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, kw_only=True, tag_field="type", tag="message_delta"):
    delta: Stop
    usage: Usage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    """The end."""


class TokenCount(msgspec.Struct):
    input_tokens: int


BlockEvent = BlockStart | BlockDelta | BlockStop
Event = MessageStart | Ping | BlockEvent | MessageDelta | MessageStop | MessagesErrorBody


def begun(*, request_id: str, model: str, n_prompt_tokens: int) -> Message:
    return Message(id=request_id, model=model, usage=Usage(input_tokens=n_prompt_tokens))


def ended(begun: Message, *, parts: AnswerParts, result: GenerationResult) -> Message:
    """Return a message whose generation ended well. A call that was cut is left out: what there is
    of its input is no object."""
    stop = stop_of(parts)
    return msgspec.structs.replace(
        begun,
        content=tuple(
            block_of(part, part.text)
            for part in parts.all
            if not (part.kind == "call" and part.is_cut)
        ),
        stop_reason=stop.stop_reason,
        stop_sequence=stop.stop_sequence,
        usage=usage_of(result),
    )


def stop_of(parts: AnswerParts) -> Stop:
    """Return how an answer ended, in the API's words."""
    reason = None
    if parts.finish_reason == "length":
        reason = "max_tokens"
    elif parts.finish_reason == "stop":
        reason = "tool_use" if parts.has_called else "end_turn"
        if parts.stop is not None:
            reason = "stop_sequence"
    return Stop(stop_reason=reason, stop_sequence=parts.stop)


def usage_of(result: GenerationResult) -> Usage:
    return Usage(
        input_tokens=result.n_prompt_tokens - result.n_cached_tokens,
        cache_read_input_tokens=result.n_cached_tokens,
        output_tokens=result.n_completion_tokens,
    )


def block_of(part: Part, text: str) -> Block:
    """Return a part as a block, with as much of its text; of a call, an object or nothing."""
    if part.kind == "call":
        return ToolUseBlock(part.call_id, part.name, msgspec.Raw(text.encode() or b"{}"))
    return TextBlock(text) if part.kind == "text" else ThinkingBlock(text)


def delta_of(part: Part, piece: str) -> TextDelta | ThinkingDelta | InputDelta:
    if part.kind == "call":
        return InputDelta(piece)
    return TextDelta(piece) if part.kind == "text" else ThinkingDelta(piece)
