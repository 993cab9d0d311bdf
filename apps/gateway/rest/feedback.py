"""``POST /v1/feedback`` and ``POST /v1/events``: what clients say of answers, and numbers that
their programs report."""

import time
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Final, Literal

import msgspec
from msgspec import Meta
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import InvalidRequest
from apps.core.hop import database_hop
from apps.feedback.services import feedback_give, metric_event_record
from apps.feedback.types import (
    FEEDBACK,
    MAX_COMMENT_CHARS,
    MAX_END_USER_CHARS,
    MAX_EVENT_ID_CHARS,
    MAX_NAME_CHARS,
    MOST_VALUE,
    Event,
    Rating,
    Teller,
)
from apps.gateway.rest.base import InferenceView, body_of
from apps.gateway.rest.operations import Operation
from apps.gateway.runtime import gateway_runtime

_AHEAD_S: Final = 300.0  # by which a client's clock may be fast

_END: Final = r"$(?!\n)"  # Python's own $ would let a line end stand behind it

RequestId = Annotated[str, Meta(min_length=1, max_length=64)]

EventId = Annotated[
    str, Meta(min_length=1, max_length=MAX_EVENT_ID_CHARS, pattern=rf"^[!-~]+{_END}")
]


class FeedbackBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """request_id: the ``id`` of the answer, or its ``x-request-id``."""

    request_id: RequestId
    rating: Literal["up", "down"]
    comment: Annotated[str, Meta(max_length=MAX_COMMENT_CHARS)] | None = None


class EventBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Either ``request_id`` or ``user``, as requests say them. timestamp: seconds since 1970."""

    name: Annotated[str, Meta(pattern=rf"^[a-z][a-z0-9_.-]*{_END}", max_length=MAX_NAME_CHARS)]
    value: Annotated[float, Meta(ge=-MOST_VALUE, le=MOST_VALUE)]
    request_id: RequestId | None = None
    user: Annotated[str, Meta(min_length=1, max_length=MAX_END_USER_CHARS)] | None = None
    event_id: EventId | None = None
    timestamp: Annotated[float, Meta(ge=0)] | None = None


class Feedback(msgspec.Struct, kw_only=True):
    """request_id: of the row in the usage ledger that answered. created_at: of the first rating."""

    object: Literal["feedback"] = "feedback"
    request_id: str
    rating: Literal["up", "down"]
    comment: str | None
    created_at: int


class ReportedEvent(msgspec.Struct, kw_only=True):
    object: Literal["event"] = "event"
    name: str
    value: float
    request_id: str | None
    user: str | None
    event_id: str | None
    timestamp: float


class FeedbackView(InferenceView):
    decoder: ClassVar = msgspec.json.Decoder(FeedbackBody)
    operations: ClassVar = {
        "post": Operation(
            id="giveFeedback",
            summary="Say whether an answer was good",
            description="Once more, it takes the place of what was said before.",
            tag="Feedback",
            answer=Feedback,
        )
    }

    async def post(self, request: Request) -> Response:
        body = body_of(request, FeedbackBody)
        runtime = gateway_runtime()
        runtime.check_admitting()
        await runtime.limits.admit_without_model(self.principal)
        event = await database_hop(
            feedback_give,
            request_id=body.request_id,
            rating=Rating(body.rating),
            comment=body.comment or "",
            teller=Teller.of(self.principal),
        )
        return Response(
            Feedback(
                request_id=event.request_id,
                rating=body.rating,
                comment=event.comment or None,
                created_at=int(event.created_at.timestamp()),
            )
        )


class EventView(InferenceView):
    decoder: ClassVar = msgspec.json.Decoder(EventBody)
    operations: ClassVar = {
        "post": Operation(
            id="reportEvent",
            summary="Report a number about a request or an end user",
            description="Told twice under one `event_id`, it is one event.",
            tag="Feedback",
            answer=ReportedEvent,
        )
    }

    async def post(self, request: Request) -> Response:
        body = body_of(request, EventBody)
        happened_at = event_check(body, now_s=time.time())
        runtime = gateway_runtime()
        runtime.check_admitting()
        await runtime.limits.admit_without_model(self.principal)
        event = await database_hop(
            metric_event_record,
            name=body.name,
            value=body.value,
            request_id=body.request_id or "",
            end_user=body.user or "",
            event_id=body.event_id or "",
            happened_at=happened_at,
            teller=Teller.of(self.principal),
        )
        return Response(_reported(event))


def event_check(body: EventBody, *, now_s: float) -> datetime | None:
    """Return when it happened, None where the body does not say; raises InvalidRequest naming the
    field."""
    if body.name == FEEDBACK:
        raise InvalidRequest(
            f"{FEEDBACK!r} is what POST /v1/feedback says; give the event another name.",
            code="invalid_value",
            param="name",
        )
    if body.request_id is None and body.user is None:
        raise InvalidRequest(
            "Give either 'request_id' or 'user'.",
            code="missing_required_parameter",
            param="request_id",
        )
    if body.request_id is not None and body.user is not None:
        raise InvalidRequest(
            "Give either 'request_id' or 'user': the request's user is known.",
            code="invalid_value",
            param="user",
        )
    if body.timestamp is None:
        return None
    if body.timestamp > now_s + _AHEAD_S:
        raise InvalidRequest(
            "Invalid value for 'timestamp': it is seconds since 1970, and not in the future.",
            code="invalid_value",
            param="timestamp",
        )
    return datetime.fromtimestamp(body.timestamp, tz=UTC)


def _reported(event: Event) -> ReportedEvent:
    return ReportedEvent(
        name=event.name,
        value=event.value,
        request_id=event.request_id or None,
        user=event.end_user or None,
        event_id=event.event_id or None,
        timestamp=event.created_at.timestamp(),
    )
