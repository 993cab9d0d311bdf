"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from typing import Any, ClassVar, Final

import msgspec
from django.http.response import HttpResponseBase
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import AppError, InvalidRequest
from apps.engines.types import AnswerDelta, GenerationResult
from apps.gateway.answer_parts import AnswerParts, Step
from apps.gateway.exceptions import renamed
from apps.gateway.merging import Stream
from apps.gateway.messages_schemas import (
    CountBody,
    MessagesBody,
    counted_request,
    messages_request,
)
from apps.gateway.rest import messages_wire as wire
from apps.gateway.rest.base import InferenceView, body_of
from apps.gateway.rest.generation import GenerationView
from apps.gateway.rest.operations import Operation
from apps.gateway.rest.streaming import named_event
from apps.gateway.rest.wording import MessagesErrorBody, messages_error
from apps.gateway.tokenizing import TokenizeRequest, tokenize

# What an engine calls otherwise.
NAMES: Final = {r"^stop\b": "stop_sequences", r"\.function\.parameters\b": ".input_schema"}


class MessagesErrors(InferenceView):
    """Errors in this API's own body; tokens in its own header as well."""

    takes_key = True

    def error_body(self, error: AppError) -> Any:
        if isinstance(error, InvalidRequest):
            error = renamed(error, NAMES)
        return messages_error(error)


class MessagesView(MessagesErrors, GenerationView):
    decoder: ClassVar = msgspec.json.Decoder(MessagesBody)
    operations: ClassVar = {
        "post": Operation(
            id="createMessage",
            summary="Continue a conversation of content blocks",
            tag="Messages",
            answer=wire.Message,
            events=(
                wire.MessageStart,
                wire.Ping,
                wire.BlockStart,
                wire.BlockDelta,
                wire.BlockStop,
                wire.MessageDelta,
                wire.MessageStop,
            ),
            error=MessagesErrorBody,
        ),
    }

    async def answer(self, body: MessagesBody) -> HttpResponseBase:
        asked = messages_request(body)
        stream = await self.start(asked)
        begun = wire.begun(
            request_id=stream.request_id,
            model=stream.model,
            n_prompt_tokens=stream.n_prompt_tokens,
        )
        if asked.stream:
            return self.streamed(stream, MessagesChunks(stream, begun))
        parts = AnswerParts(stream.request_id)
        result = await self.gathered(stream, parts)
        parts.end(result.finish_reason)
        return self.whole(stream, wire.ended(begun, parts=parts, result=result))


class CountTokensView(MessagesErrors):
    decoder: ClassVar = msgspec.json.Decoder(CountBody)
    operations: ClassVar = {
        "post": Operation(
            id="countMessageTokens",
            summary="Count the tokens of a conversation",
            tag="Messages",
            answer=wire.TokenCount,
            error=MessagesErrorBody,
        ),
    }

    async def post(self, request: Request) -> Response:
        asked = counted_request(body_of(request, CountBody))
        found = await tokenize(
            TokenizeRequest(
                model=asked.model, prompt=asked.prompt, add_special_tokens=None, with_strings=False
            ),
            principal=self.principal,
        )
        return Response(wire.TokenCount(len(found.token_ids)))


class MessagesChunks:
    """Tells of blocks, one after the other, and at last how the message ended."""

    def __init__(self, stream: Stream, begun: wire.Message) -> None:
        self._begun = begun
        self._parts = AnswerParts(stream.request_id)

    def start(self) -> bytes:
        return _event(wire.MessageStart(self._begun)) + _event(wire.Ping())

    def delta(self, delta: AnswerDelta) -> bytes:
        return _told(self._parts.add(delta))

    def end(self, result: GenerationResult) -> bytes:
        told = _told(self._parts.end(result.finish_reason))
        stop = wire.stop_of(self._parts)
        last = wire.MessageDelta(delta=stop, usage=wire.usage_of(result))
        return told + _event(last) + _event(wire.MessageStop())

    def error(self, error: AppError) -> bytes:
        return _event(messages_error(error))


def _told(steps: list[Step]) -> bytes:
    return b"".join(_event(_event_of(step)) for step in steps)


def _event_of(step: Step) -> wire.Event:
    part = step.part
    match step.what:
        case "begins":
            return wire.BlockStart(index=part.index, content_block=wire.block_of(part, ""))
        case "grows":
            return wire.BlockDelta(index=part.index, delta=wire.delta_of(part, step.piece))
        case "ends":
            return wire.BlockStop(index=part.index)


def _event(event: wire.Event) -> bytes:
    name = event.__struct_config__.tag
    assert isinstance(name, str)
    return named_event(name, event)
