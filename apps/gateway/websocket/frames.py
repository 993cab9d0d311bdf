"""The messages of ``/v1/stream``; docs/websocket.md tells their meaning."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from apps.engines.types import AnswerDelta
from apps.experiments.types import MAX_CONVERSATION_CHARS
from apps.gateway.answers import FinishReason
from apps.gateway.chat_schemas import ChatFields
from apps.gateway.rest.wire import Call, ChatLogprobs, Usage, call_pieces, chat_logprobs

Conversation = Annotated[str, Meta(pattern=rf"^[!-~]{{1,{MAX_CONVERSATION_CHARS}}}$")]
ClientId = Annotated[str, Meta(min_length=1, max_length=64)]


class AuthFrame(msgspec.Struct, tag_field="type", tag="auth", forbid_unknown_fields=True):
    token: str


class StartFrame(
    ChatFields, kw_only=True, tag_field="type", tag="start", forbid_unknown_fields=True
):
    id: ClientId
    conversation: Conversation | None = None


class CancelFrame(msgspec.Struct, tag_field="type", tag="cancel", forbid_unknown_fields=True):
    id: ClientId


class PingFrame(msgspec.Struct, tag_field="type", tag="ping", forbid_unknown_fields=True):
    nonce: Annotated[str, Meta(max_length=64)] | int | None = None


ClientFrame = AuthFrame | StartFrame | CancelFrame | PingFrame


class ReadyFrame(msgspec.Struct, tag_field="type", tag="ready"):
    """``session`` where the connection may be resumed."""

    tenant: str
    session: str | UnsetType = UNSET


class _RequestFrame(msgspec.Struct, kw_only=True):
    """``event`` is the frame's number in a session."""

    event: int | UnsetType = UNSET


class StartedFrame(_RequestFrame, tag_field="type", tag="started", kw_only=True):
    """``fallback`` names the deployment, where it is one of the route's fallback chain."""

    id: str
    request_id: str
    model: str
    n_prompt_tokens: int
    fallback: str | UnsetType = UNSET


class DeltaFrame(_RequestFrame, tag_field="type", tag="delta", kw_only=True, omit_defaults=True):
    """``index`` is the answer's, where there are several."""

    id: str
    text: str
    index: int = 0
    reasoning: str = ""
    tool_calls: tuple[Call, ...] = ()
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None


class FinishedFrame(_RequestFrame, tag_field="type", tag="finished", kw_only=True):
    id: str
    finish_reason: Literal["stop", "length", "tool_calls", "cancelled"]
    usage: Usage


class ErrorFrame(_RequestFrame, tag_field="type", tag="error", kw_only=True):
    id: str | None
    error: dict[str, Any]


class PongFrame(msgspec.Struct, tag_field="type", tag="pong"):
    nonce: str | int | None


RequestFrame = StartedFrame | DeltaFrame | FinishedFrame | ErrorFrame
ServerFrame = ReadyFrame | RequestFrame | PongFrame

client_frame_decoder: Final = msgspec.json.Decoder(ClientFrame)


class _Addressed(msgspec.Struct):
    id: Any = None


def client_id_of(text: str) -> str | None:
    """Return the id of a frame that is otherwise wrong, so that its error can name it."""
    try:
        found = msgspec.json.decode(text, type=_Addressed).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, str) and 0 < len(found) <= 64 else None


def delta_frame(
    client_id: str, delta: AnswerDelta, *, request_id: str, finish_reason: FinishReason | None
) -> DeltaFrame | None:
    """Return the frame of a delta, None where there is nothing to show; that a request was
    cancelled is told by its last frame."""
    if finish_reason == "abort":
        finish_reason = None
    if finish_reason is None and not any(
        (delta.text, delta.reasoning, delta.tool_calls, delta.logprobs)
    ):
        return None
    return DeltaFrame(
        id=client_id,
        text=delta.text,
        index=delta.index,
        reasoning=delta.reasoning,
        tool_calls=call_pieces(delta, request_id=request_id),
        logprobs=chat_logprobs(delta.logprobs),
        finish_reason=finish_reason,
    )
