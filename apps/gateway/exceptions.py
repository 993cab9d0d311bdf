"""Errors that only the doors raise, and how those of an engine become ours."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from apps.core.exceptions import (
    AppError,
    AuthenticationFailed,
    Conflict,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from apps.engines.exceptions import (
    EngineClientError,
    EngineDead,
    EngineOverloaded,
    EngineRequestError,
)

WRONG_TASK: Final = "unsupported_task"
IDEMPOTENCY_KEY: Final = "Idempotency-Key"


class RequestTimedOut(AppError):
    """The request was not finished within the time that one request may take."""

    status = 504
    default_code = "request_timeout"
    default_message = "The request took longer than one request may take."


class Draining(Unavailable):
    """This process is stopping; another one, or this one started anew, will answer."""

    default_code = "server_shutting_down"
    default_message = "The server is shutting down; try again shortly."

    def __init__(self) -> None:
        super().__init__(retry_after_s=2.0)


class AccessRevoked(AuthenticationFailed):
    """The access of a request was withdrawn while it ran."""

    default_code = "access_revoked"
    default_message = "The access that this was started with has been revoked."


class MethodNotAllowed(AppError):
    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"
    default_message = "This method is not allowed here."


class UnsupportedMediaType(AppError):
    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"
    default_message = "The body must be JSON: send 'Content-Type: application/json'."


class PreconditionFailed(AppError):
    """It is no longer as ``If-Match`` says."""

    status = 412
    type = "invalid_request_error"
    default_code = "precondition_failed"
    default_message = (
        "It was changed meanwhile: its ETag is another one. Look at it again, then decide."
    )


class IdempotencyKeyReused(AppError):
    """The key names another request: its body, path or method differs."""

    status = 422
    type = "invalid_request_error"
    default_code = "idempotency_key_reused"
    default_message = "This key was used with another request; give each request a key of its own."

    def __init__(self) -> None:
        super().__init__(param=IDEMPOTENCY_KEY)


class IdempotencyKeyInUse(Conflict):
    """The request with this key still runs, after a while of waiting for it."""

    default_code = "idempotency_key_in_use"
    default_message = "The request with this key still runs; ask again to wait on."

    def __init__(self) -> None:
        super().__init__(param=IDEMPOTENCY_KEY, retry_after_s=1.0)


class AnswerNotKept(Conflict):
    """The request was answered, and the answer cannot be given again."""

    default_code = "idempotent_answer_not_kept"
    default_message = (
        "The request with this key was answered, and the answer was too large to keep. Use "
        "another key to have it made again."
    )

    def __init__(self) -> None:
        super().__init__(param=IDEMPOTENCY_KEY)


class RequestQuarantined(AppError):
    """Engines died of an equal request."""

    status = 422
    type = "invalid_request_error"
    default_code = "request_quarantined"

    def __init__(self, *, until: datetime) -> None:
        super().__init__(
            "The engine that ran this request died, more than once. It is refused until "
            f"{until.astimezone(UTC):%Y-%m-%d %H:%M} UTC, or until an operator lifts that; other "
            "requests are served."
        )


class TooManyOnConnection(Overloaded):
    default_code = "too_many_requests_on_connection"

    def __init__(self, limit: int) -> None:
        super().__init__(f"At most {limit} requests may run on one connection.", param="id")


class EngineFailed(AppError):
    """The engine failed at this request."""

    default_code = "engine_error"
    default_message = "The engine failed while processing the request."


def renamed(error: InvalidRequest, names: Mapping[str, str]) -> InvalidRequest:
    """Return the error with its field as an endpoint calls it. names: by regular expression."""
    param = error.param
    for pattern, name in names.items() if param else ():
        param = re.sub(pattern, name, param or "")
    return InvalidRequest(error.message, code=error.code, param=param)


def app_error_of(error: Exception, *, max_tokens_param: str = "max_tokens") -> AppError:
    """Return what a client is told. The engine's own words go out only when the fault is the
    client's; a fault of ours names no socket, path or trace."""
    match error:
        case AppError():
            return error
        case EngineRequestError():
            param = max_tokens_param if error.param == "max_tokens" else error.param
            if error.code == WRONG_TASK:
                param = "model"  # the fields are right: another model would take them
            return InvalidRequest(str(error), code=error.code, param=param)
        case EngineOverloaded():
            return Overloaded(code="engine_overloaded", retry_after_s=error.retry_after_s)
        case EngineDead():
            return Unavailable(
                "The engine that served this request is gone; try again shortly.",
                code="engine_unavailable",
            )
        case EngineClientError():
            return EngineFailed()
        case _:
            return AppError()
