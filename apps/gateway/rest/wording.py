"""How errors are worded: as the API does that a path belongs to, whoever refuses."""

from typing import Any, Final

import msgspec

from apps.core.exceptions import AppError, Overloaded

MESSAGES_PATH: Final = "/v1/messages"
# Where a status says less than the name: everything else goes by its class of status.
_ERROR_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


class MessagesFault(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``param``, which is ours: the field that is wrong."""

    type: str
    message: str
    param: str | None = None


class MessagesErrorBody(msgspec.Struct, kw_only=True, tag_field="type", tag="error"):
    error: MessagesFault


def error_body(error: AppError, *, path: str) -> Any:
    """Return what is sent of an error to whoever asked at ``path``."""
    if path == MESSAGES_PATH or path.startswith(f"{MESSAGES_PATH}/"):
        return messages_error(error)
    return error.body()


def messages_error(error: AppError) -> MessagesErrorBody:
    return MessagesErrorBody(
        error=MessagesFault(type=_error_type(error), message=error.message, param=error.param)
    )


def _error_type(error: AppError) -> str:
    if isinstance(error, Overloaded):
        return "overloaded_error"
    known = _ERROR_TYPES.get(error.status)
    return known or ("invalid_request_error" if error.status < 500 else "api_error")
