"""What a view says of itself for the OpenAPI document. It knows nothing of how that is made."""

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
    """One method of a view. What a POST takes is not said here: it is what the view's ``decoder``
    decodes, unless ``form`` names the parts of a multipart body.

    answer: a struct; None for an empty answer, or a file of ``answer_type``.
    events: what the data of a server-sent event may be, where ``stream`` may be true.
    query: a struct whose fields are the query parameters.
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
    form: type[msgspec.Struct] | None = None
    description: str = ""
    errors: tuple[type[AppError], ...] = ()
    error: type[msgspec.Struct] = Error
