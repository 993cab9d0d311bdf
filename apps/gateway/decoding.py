"""JSON to structs, and what the decoder says to what the API's clients expect to read."""

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from apps.core.exceptions import InvalidRequest

_S = TypeVar("_S")
_AT: Final = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_FIELD: Final = re.compile(
    r"Object (?P<how>missing required|contains unknown) field `(?P<name>.*)`"
)
_TYPE: Final = re.compile(r"Expected `(?P<wanted>.*)`, got `(?P<got>.*)`")
_ECHO_MAX_CHARS: Final = 120


def decode(decoder: "msgspec.json.Decoder[_S]", body: bytes | str) -> _S:
    """Decode a body; raises InvalidRequest, ``param`` naming the field that is wrong."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"The body could not be parsed as JSON: {error}", code="invalid_json"
        ) from error
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None


def decode_query(kind: type[_S], values: Mapping[str, Any]) -> _S:
    """Read the parameters of a query as a struct's fields; raises as ``decode`` does."""
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from error


def _invalid_field(text: str) -> InvalidRequest:
    found = _AT.fullmatch(text)
    what, path = (found["what"], found["path"] or "") if found else (text, "")
    if field := _FIELD.fullmatch(what):
        param = _short(f"{path}.{field['name']}" if path else field["name"])
        if field["how"] == "contains unknown":
            return InvalidRequest(
                f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param
            )
        return InvalidRequest(
            f"Missing required parameter: '{param}'.",
            code="missing_required_parameter",
            param=param,
        )
    param = _short(path)
    if types := _TYPE.fullmatch(what):
        return InvalidRequest(
            f"Invalid type for '{param or 'body'}': "
            f"expected {types['wanted']}, got {types['got']}.",
            code="invalid_type",
            param=param or None,
        )
    return InvalidRequest(
        f"Invalid value for '{param or 'body'}': {_short(what)}.",
        code="invalid_value",
        param=param or None,
    )


def _short(text: str) -> str:
    return text if len(text) <= _ECHO_MAX_CHARS else text[:_ECHO_MAX_CHARS] + "…"
