"""``POST /v1/responses``."""

from typing import Any, ClassVar, Final

import msgspec
from django.http.response import HttpResponseBase

from apps.core.exceptions import AppError, InvalidRequest
from apps.engines.types import AnswerDelta, GenerationResult
from apps.gateway.answer_parts import AnswerParts, Part, Step
from apps.gateway.exceptions import renamed
from apps.gateway.merging import Stream
from apps.gateway.responses_schemas import ResponsesBody, responses_request
from apps.gateway.rest import responses_wire as wire
from apps.gateway.rest.generation import GenerationView
from apps.gateway.rest.operations import Operation
from apps.gateway.rest.streaming import named_event

# What an engine calls otherwise.
NAMES: Final = {r"^messages\b": "input", r"^(tools\[\d+\])\.function\b": r"\1"}


class ResponsesView(GenerationView):
    decoder: ClassVar = msgspec.json.Decoder(ResponsesBody)
    operations: ClassVar = {
        "post": Operation(
            id="createResponse",
            summary="Continue a conversation of items",
            tag="Responses",
            answer=wire.Response,
            events=(wire.Event,),
        ),
    }

    async def answer(self, body: ResponsesBody) -> HttpResponseBase:
        asked = responses_request(body)
        try:
            stream = await self.start(asked)
        except InvalidRequest as error:
            raise renamed(error, NAMES) from error
        begun = wire.begun(stream, body)
        if asked.stream:
            return self.streamed(stream, ResponsesChunks(stream, begun))
        parts = AnswerParts(stream.request_id)
        result = await self.gathered(stream, parts)
        parts.end(result.finish_reason)
        return self.whole(stream, wire.ended(begun, parts=parts, result=result))


class ResponsesChunks:
    """Tells of items, what they are made of and how those grow; then the whole answer again."""

    def __init__(self, stream: Stream, begun: wire.Response) -> None:
        self._begun = begun
        self._parts = AnswerParts(stream.request_id)
        self._n_events = 0
        self._unsent = b""

    def start(self) -> bytes:
        self._unsent = self._event("response.created", response=self._begun) + self._event(
            "response.in_progress", response=self._begun
        )
        return self._unsent

    def delta(self, delta: AnswerDelta) -> bytes:
        self._unsent = b""  # what starts the stream goes out with the first delta
        return self._told(self._parts.add(delta))

    def end(self, result: GenerationResult) -> bytes:
        told = self._told(self._parts.end(result.finish_reason))
        response = wire.ended(self._begun, parts=self._parts, result=result)
        kind = "response.completed" if response.status == "completed" else "response.incomplete"
        return told + self._event(kind, response=response)

    def error(self, error: AppError) -> bytes:
        response = wire.failed(self._begun, error, parts=self._parts)
        return self._unsent + self._event("response.failed", response=response)

    def _told(self, steps: list[Step]) -> bytes:
        return b"".join(self._step(step) for step in steps)

    def _step(self, step: Step) -> bytes:
        part = step.part
        match step.what:
            case "begins":
                item = wire.output_of(part, self._begun.id, status="in_progress")
                return self._of_item("added", part, item=item) + self._content("added", part, "")
            case "grows" if part.kind == "call":
                kind = "response.function_call_arguments.delta"
                return self._of_part(kind, part, delta=step.piece)
            case "grows":
                kind = f"{_text_kind(part)}.delta"
                return self._of_text(kind, part, delta=step.piece)
            case "ends":
                item = wire.output_of(part, self._begun.id)
                return self._done(part) + self._of_item("done", part, item=item)

    def _done(self, part: Part) -> bytes:
        if part.kind == "call":
            kind = "response.function_call_arguments.done"
            return self._of_part(kind, part, arguments=part.text)
        text = self._of_text(f"{_text_kind(part)}.done", part, text=part.text)
        return text + self._content("done", part, part.text)

    def _content(self, what: str, part: Part, text: str) -> bytes:
        if part.kind == "call":
            return b""
        content = wire.content_of(part, text)
        return self._of_part(f"response.content_part.{what}", part, content_index=0, part=content)

    def _of_text(self, kind: str, part: Part, **fields: Any) -> bytes:
        if part.kind == "text":
            fields["logprobs"] = ()
        return self._of_part(kind, part, content_index=0, **fields)

    def _of_part(self, kind: str, part: Part, /, **fields: Any) -> bytes:
        item_id = wire.item_id(part, self._begun.id)
        return self._event(kind, output_index=part.index, item_id=item_id, **fields)

    def _of_item(self, what: str, part: Part, *, item: wire.Output) -> bytes:
        return self._event(f"response.output_item.{what}", output_index=part.index, item=item)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = wire.Event(type=kind, sequence_number=self._n_events, **fields)
        self._n_events += 1
        return named_event(kind, event)


def _text_kind(part: Part) -> str:
    return "response.reasoning_text" if part.kind == "reasoning" else "response.output_text"
