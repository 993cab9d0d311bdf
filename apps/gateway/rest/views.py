"""The inference API over HTTP: models, chat completions, completions."""

from typing import Any, ClassVar, TypeVar

import msgspec
from django.http.response import HttpResponseBase
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import InvalidRequest
from apps.gateway import admission
from apps.gateway.generation import GenerationStream
from apps.gateway.rest import wire
from apps.gateway.rest.base import InferenceView
from apps.gateway.rest.streaming import ChatChunks, Chunks, EventStreamResponse, TextChunks
from apps.gateway.runtime import gateway_runtime
from apps.gateway.schemas import ChatBody, CompletionBody, chat_request, completion_request
from apps.gateway.types import GenerationRequest
from apps.routing.types import RouteTarget

DOOR = "rest"

_T = TypeVar("_T")


class ModelListView(InferenceView):
    async def get(self, request: Request) -> Response:
        runtime = gateway_runtime()
        await runtime.ready()
        return Response(wire.ModelList(data=tuple(_card(each) for each in runtime.table.targets())))


class ModelView(InferenceView):
    async def get(self, request: Request, name: str) -> Response:
        runtime = gateway_runtime()
        await runtime.ready()
        return Response(_card(runtime.table.target(name)))


class _GenerationView(InferenceView):
    """Admit, then stream or gather."""

    async def answer(self, request: GenerationRequest) -> HttpResponseBase:
        stream = await admission.start(principal=self.principal, request=request, door=DOOR)
        response: HttpResponseBase
        if request.stream:
            response = EventStreamResponse(
                stream,
                self.chunks(stream, include_usage=request.include_usage),
                include_usage=request.include_usage,
            )
        else:
            response = Response(await self._whole(stream))
        response["X-Request-Id"] = stream.request_id
        return response

    async def _whole(self, stream: GenerationStream) -> Any:
        async with stream:
            text = "".join([delta.text async for delta in stream])
        return self.whole(stream, text)

    def chunks(self, stream: GenerationStream, *, include_usage: bool) -> Chunks:
        raise NotImplementedError

    def whole(self, stream: GenerationStream, text: str) -> Any:
        raise NotImplementedError


class ChatCompletionView(_GenerationView):
    decoder: ClassVar = msgspec.json.Decoder(ChatBody)

    async def post(self, request: Request) -> HttpResponseBase:
        return await self.answer(chat_request(_body(request, ChatBody)))

    def chunks(self, stream: GenerationStream, *, include_usage: bool) -> Chunks:
        return ChatChunks(stream, include_usage=include_usage)

    def whole(self, stream: GenerationStream, text: str) -> Any:
        assert stream.result is not None
        return wire.chat_completion(stream, text=text, result=stream.result)


class CompletionView(_GenerationView):
    decoder: ClassVar = msgspec.json.Decoder(CompletionBody)

    async def post(self, request: Request) -> HttpResponseBase:
        return await self.answer(completion_request(_body(request, CompletionBody)))

    def chunks(self, stream: GenerationStream, *, include_usage: bool) -> Chunks:
        return TextChunks(stream, include_usage=include_usage)

    def whole(self, stream: GenerationStream, text: str) -> Any:
        assert stream.result is not None
        return wire.completion(stream, text=text, result=stream.result)


def _body(request: Request, kind: type[_T]) -> _T:
    data = request.data
    if not isinstance(data, kind):  # DRF hands an empty body on without asking the parser
        raise InvalidRequest("The body is empty; it must be a JSON object.", code="invalid_json")
    return data


def _card(target: RouteTarget) -> wire.ModelCard:
    return wire.ModelCard(
        id=target.name, created=int(target.created_at.timestamp()), owned_by=target.deployment_name
    )
