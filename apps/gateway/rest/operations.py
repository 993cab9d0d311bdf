"""What a view says of itself for the OpenAPI document. It knows nothing of how that is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from apps.core.exceptions import (
    AppError,
    AuthenticationFailed,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    PermissionDenied,
    Unavailable,
)
from apps.gateway.exceptions import (
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    RequestTimedOut,
    UnsupportedMediaType,
)
from apps.metering.exceptions import LimitExceeded

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
BYTES: Final = "application/octet-stream"

# What any path may answer, what one that names something may, one that takes a body, and one that
# takes an Idempotency-Key.
ERRORS: Final[tuple[type[AppError], ...]] = (
    InvalidRequest,
    AuthenticationFailed,
    PermissionDenied,
    PayloadTooLarge,
    AppError,
    Unavailable,
)
ERRORS_OF_A_NAME: Final[tuple[type[AppError], ...]] = (NotFound,)
ERRORS_OF_A_BODY: Final[tuple[type[AppError], ...]] = (
    NotFound,
    UnsupportedMediaType,
    LimitExceeded,
    RequestTimedOut,
)
ERRORS_OF_A_KEY: Final[tuple[type[AppError], ...]] = (IdempotencyKeyInUse, IdempotencyKeyReused)


class ErrorDetail(msgspec.Struct, kw_only=True):
    """``param`` names the field that is wrong, as ``messages[0].content``."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct, kw_only=True):
    """What every failure is told in; see ``AppError.body``."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of a view. What it takes is ``body``, or the parts of a multipart body that
    ``form`` names; of a view with one POST it is not said here but by its ``decoder``.

    answer: a struct; None for an empty answer, or a file of ``answer_type``.
    events: what the data of a server-sent event may be, where ``stream`` may be true.
    query: a struct whose fields are the query parameters. headers: what it takes in such, as the
    document describes parameters. takes_bytes: its body is a file, as it is.
    has_etag: its answer comes with one. if_match: it may be asked for what has that one alone.
    if_none_match: or, with ``*``, for what is not there yet.
    errors: what it may answer beside what all do.
    error: the struct of its error body.
    """

    id: str
    summary: str
    tag: str
    answer: Any
    answer_type: str = JSON
    status: int = 200
    events: tuple[type[msgspec.Struct], ...] = ()
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    form: type[msgspec.Struct] | None = None
    headers: tuple[Mapping[str, Any], ...] = ()
    takes_bytes: bool = False
    has_etag: bool = False
    if_match: bool = False
    if_none_match: bool = False
    description: str = ""
    errors: tuple[type[AppError], ...] = ()
    error: type[msgspec.Struct] = Error
