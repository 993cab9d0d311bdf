"""What the views that generate have in common: admit, then stream or gather."""

from typing import Any, Protocol

from django.http.response import HttpResponseBase
from rest_framework.response import Response

from apps.engines.types import AnswerDelta, GenerationResult
from apps.gateway import admission
from apps.gateway.generation import GenerationStream
from apps.gateway.limits import rate_headers
from apps.gateway.merging import Stream
from apps.gateway.rest.base import AnsweringView
from apps.gateway.rest.streaming import Chunks, EventStreamResponse
from apps.gateway.types import GenerationRequest


class Gatherer(Protocol):
    """Takes the answers of a generation piece by piece."""

    def add(self, delta: AnswerDelta) -> object: ...


class GenerationView(AnsweringView):
    """A subclass words the answers of its endpoint."""

    async def start(self, request: GenerationRequest) -> GenerationStream:
        stream = await admission.start(
            principal=self.principal, request=request, door=self.door, priority=self.priority
        )
        self.request_id = stream.request_id
        return stream

    async def gathered(self, stream: Stream, answers: Gatherer) -> GenerationResult:
        """Run a generation to its end; raises what ended it badly."""
        async with stream:
            while (delta := await stream.take()) is not None:
                answers.add(delta)
        assert stream.result is not None
        return stream.result

    def whole(self, stream: Stream, answer: Any) -> HttpResponseBase:
        return _identified(Response(answer), stream)

    def streamed(self, stream: Stream, chunks: Chunks) -> HttpResponseBase:
        return _identified(EventStreamResponse(stream, chunks), stream)


def _identified(response: HttpResponseBase, stream: Stream) -> HttpResponseBase:
    response["X-Request-Id"] = stream.request_id
    for name, value in rate_headers(requests=stream.requests, tokens=stream.tokens).items():
        response[name] = value
    return response
