"""The one family of errors that doors turn into the one error body."""

from typing import Any, ClassVar


class AppError(Exception):
    """Base. A subclass sets status, type, code and default text; an instance may add ``param``.

    should_retry: what clients are told of trying again; None means yes if there is a time for it.
    default_retry_after_s: when to try again, where an instance says nothing of it.
    ``body`` is OpenAI's shape: ``{"error": {message, type, param, code}}``.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"
    default_message: ClassVar[str] = "The server had an error while processing the request."
    should_retry: ClassVar[bool | None] = None
    default_retry_after_s: ClassVar[float | None] = None

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message or self.default_message)
        self.message = message or self.default_message
        self.code = code or self.default_code
        self.param = param
        self.retry_after_s = self.default_retry_after_s if retry_after_s is None else retry_after_s

    def body(self) -> dict[str, dict[str, Any]]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequest(AppError):
    """The body or a field of it is wrong; ``param`` names the field."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_request"
    default_message = "The request is not valid."


class AuthenticationFailed(AppError):
    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"
    default_message = "Incorrect API key provided."


class PermissionDenied(AppError):
    status = 403
    type = "invalid_request_error"
    default_code = "permission_denied"
    default_message = "You may not do this."


class NotFound(AppError):
    status = 404
    type = "invalid_request_error"
    default_code = "not_found"
    default_message = "There is no such thing."


class Conflict(AppError):
    status = 409
    type = "invalid_request_error"
    default_code = "conflict"
    default_message = "The object was changed by someone else."


class PayloadTooLarge(AppError):
    status = 413
    type = "invalid_request_error"
    default_code = "payload_too_large"
    default_message = "The request body is too large."


class Overloaded(AppError):
    """A bounded queue is full; the same request may succeed after ``retry_after_s``."""

    status = 503
    default_code = "overloaded"
    default_message = "The server is busy; try again shortly."


class Unavailable(AppError):
    """Something that the request needs is away: an engine, the database."""

    status = 503
    default_retry_after_s = 1.0
    default_code = "unavailable"
    default_message = "The service is not available at the moment."
