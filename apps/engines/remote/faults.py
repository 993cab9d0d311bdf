"""What a remote server's refusals and failures are to us. Its own words go on only where the fault
is the client's, and never where they name the server, its model or its key."""

import re
from typing import Any, Final

import msgspec

from apps.engines.exceptions import (
    EngineClientError,
    EngineDead,
    EngineFault,
    EngineOverloaded,
    EngineRequestError,
)

MAX_ERROR_BYTES: Final = 16 * 1024
_MAX_WAIT_S: Final = 60.0
_CLIENT_FAULTS: Final = frozenset({400, 413, 422})
_BUSY: Final = frozenset({429, 503})
_AWAY: Final = frozenset({502, 504})
_WORD: Final = re.compile(r"[a-z0-9_]{1,60}")
_FIELD: Final = re.compile(r"[A-Za-z0-9_.\[\]]{1,80}")
_MAX_CHARS: Final = 500


class _Error(msgspec.Struct):
    message: Any = None
    param: Any = None
    code: Any = None


class _ErrorBody(msgspec.Struct):
    """``error`` as OpenAI has it; or its fields alone, as some servers do."""

    error: _Error | None = None
    message: Any = None
    param: Any = None
    code: Any = None


_decode: Final = msgspec.json.Decoder(_ErrorBody).decode


def fault_of(
    status: int, body: bytes, *, retry_after: str | None, secrets: tuple[str, ...]
) -> EngineClientError:
    """Return the error for an answer that is none. secrets: texts that no client may read."""
    if status in _BUSY:
        return EngineOverloaded("the remote server is busy", retry_after_s=_seconds(retry_after))
    if status in _CLIENT_FAULTS:
        return _client_fault(body, secrets=secrets)
    if status in _AWAY:
        return EngineDead(f"the remote server's own server is away: status {status}")
    if status in (401, 403):
        return EngineFault(f"the remote server does not accept our key: status {status}")
    return EngineFault(f"the remote server answered with status {status}")


def _client_fault(body: bytes, *, secrets: tuple[str, ...]) -> EngineRequestError:
    try:
        found = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _ErrorBody()
    error = found.error or _Error(message=found.message, param=found.param, code=found.code)
    text = error.message if isinstance(error.message, str) else ""
    if not text or not text.isprintable() or any(each and each in text for each in secrets):
        text = "The model refused the request."
    code = error.code if isinstance(error.code, str) else ""
    param = error.param if isinstance(error.param, str) else ""
    return EngineRequestError(
        text[:_MAX_CHARS],
        code=code if _WORD.fullmatch(code) else "invalid_request",
        param=param if _FIELD.fullmatch(param) else None,
    )


def _seconds(retry_after: str | None) -> float:
    try:
        return min(max(float(retry_after or 1.0), 0.0), _MAX_WAIT_S)
    except ValueError:
        return 1.0
