"""Reads an input file: one JSON request a line, checked before anything runs. Knows no database."""

from dataclasses import dataclass
from typing import IO, Any, Final

import msgspec

from apps.batches.types import Line, LineError

CUSTOM_ID_MAX_CHARS: Final = 256
MAX_ERRORS: Final = 50


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    """The fields' types are checked by hand, so that the error names the field and the line."""

    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw = msgspec.Raw(b"")


_decoder: Final = msgspec.json.Decoder(_Request)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedFile:
    """Either errors or at least one line."""

    lines: tuple[Line, ...]
    errors: tuple[LineError, ...]


class _Wrong(Exception):
    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def parse_file(
    file: IO[bytes], *, endpoint: str, max_lines: int, max_line_bytes: int
) -> ParsedFile:
    """Check every line. Blank lines count as lines, and as nothing else."""
    lines: list[Line] = []
    errors: list[LineError] = []
    seen: dict[str, int] = {}
    number = offset = 0
    while (raw := file.readline(max_line_bytes + 1)) and len(errors) < MAX_ERRORS:
        number += 1
        try:
            if len(raw.rstrip(b"\r\n")) > max_line_bytes:
                raise _Wrong("line_too_long", f"The line is over {max_line_bytes} bytes.")
            if raw.strip():
                if len(lines) == max_lines:
                    raise _Wrong("too_many_requests", f"The file has over {max_lines} requests.")
                custom_id = _checked(raw, endpoint=endpoint, seen=seen)
                seen[custom_id] = number
                lines.append(
                    Line(number=number, custom_id=custom_id, offset=offset, n_bytes=len(raw))
                )
        except _Wrong as wrong:
            errors.append(
                LineError(code=wrong.code, message=wrong.message, param=wrong.param, line=number)
            )
            if wrong.code in ("line_too_long", "too_many_requests"):
                break  # what follows would be read wrongly, or without end
        offset += len(raw)
    if not lines and not errors:
        errors.append(LineError(code="empty_file", message="The file has no request."))
    return ParsedFile(lines=() if errors else tuple(lines), errors=tuple(errors))


def body_of(raw: bytes) -> bytes:
    """Return the request's body in a line that was checked."""
    return bytes(_decoder.decode(raw).body)


def _checked(raw: bytes, *, endpoint: str, seen: dict[str, int]) -> str:
    try:
        request = _decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _Wrong("invalid_request", f"The line is not a request: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Wrong("invalid_json_line", "The line is not valid JSON.") from error
    custom_id = request.custom_id
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= CUSTOM_ID_MAX_CHARS:
        raise _Wrong(
            "invalid_custom_id",
            f"'custom_id' must be a string of 1 to {CUSTOM_ID_MAX_CHARS} characters.",
            param="custom_id",
        )
    if "\x00" in custom_id:
        raise _Wrong("invalid_custom_id", "'custom_id' holds a NUL.", param="custom_id")
    if custom_id in seen:
        raise _Wrong(
            "duplicate_custom_id",
            f"'custom_id' is that of line {seen[custom_id]} too.",
            param="custom_id",
        )
    if request.method != "POST":
        raise _Wrong("invalid_method", "'method' must be 'POST'.", param="method")
    if request.url != endpoint:
        raise _Wrong("invalid_url", f"'url' must be the batch's: '{endpoint}'.", param="url")
    if bytes(request.body).lstrip()[:1] != b"{":
        raise _Wrong("invalid_body", "'body' must be an object.", param="body")
    return custom_id
