"""What the views that generate have in common: admit, then stream or gather."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from django.http.response import HttpResponseBase
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import InvalidRequest
from apps.engines.types import AnswerDelta, GenerationResult
from apps.experiments.types import MAX_CONVERSATION_CHARS
from apps.gateway import reuse
from apps.gateway.limits import rate_headers
from apps.gateway.merging import Stream
from apps.gateway.rest.base import AnsweringView
from apps.gateway.rest.streaming import Chunks, EventStreamResponse
from apps.gateway.reuse import SingleStream
from apps.gateway.types import GenerationRequest, ReuseWish

RESPONSE_CACHE: Final = "X-Response-Cache"
CONVERSATION: Final = "X-Conversation-Id"
FALLBACK: Final = "X-Fallback-Deployment"
_CONVERSATION: Final = re.compile(rf"[!-~]{{1,{MAX_CONVERSATION_CHARS}}}")


class Gatherer(Protocol):
    """Takes the answers of a generation piece by piece."""

    def add(self, delta: AnswerDelta) -> object: ...


class GenerationView(AnsweringView):
    """A subclass words the answers of its endpoint."""

    reuses_answers = True
    wish: ReuseWish | None = None
    conversation: str | None = None

    async def post(self, request: Request) -> HttpResponseBase:
        self.wish = _wish_of(request.META)
        self.conversation = _conversation_of(request.META)
        return await super().post(request)

    async def start(self, request: GenerationRequest) -> SingleStream:
        if self.conversation is not None:
            request = replace(request, conversation=self.conversation)
        stream = await reuse.start(
            principal=self.principal,
            request=request,
            door=self.door,
            priority=self.priority,
            wish=self.wish,
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


def _wish_of(meta: Mapping[str, str]) -> ReuseWish | None:
    """Return what the headers say of kept answers; raises InvalidRequest."""
    directives = meta.get("HTTP_CACHE_CONTROL", "").lower().split(",")
    if "no-store" in (directive.strip() for directive in directives):
        return "no-store"
    match meta.get("HTTP_X_RESPONSE_CACHE"):
        case None:
            return None
        case "use" | "no-store" as wish:
            return wish
    raise InvalidRequest(
        f"'{RESPONSE_CACHE}' must be 'use' or 'no-store'.",
        code="invalid_value",
        param=RESPONSE_CACHE,
    )


def _conversation_of(meta: Mapping[str, str]) -> str | None:
    """Return which conversation the headers say it is of; raises InvalidRequest."""
    found = meta.get("HTTP_X_CONVERSATION_ID")
    if not found:
        return None
    if not _CONVERSATION.fullmatch(found):
        raise InvalidRequest(
            f"'{CONVERSATION}' must be 1 to {MAX_CONVERSATION_CHARS} visible ASCII characters.",
            code="invalid_value",
            param=CONVERSATION,
        )
    return found


def _identified(response: HttpResponseBase, stream: Stream) -> HttpResponseBase:
    response["X-Request-Id"] = stream.request_id
    if stream.reuse is not None:
        response[RESPONSE_CACHE] = stream.reuse
    if stream.fallback is not None:
        response[FALLBACK] = stream.fallback
    for name, value in rate_headers(requests=stream.requests, tokens=stream.tokens).items():
        response[name] = value
    return response
