"""Entity tags, which ``If-Match`` is compared with: of two who write, one hears of the other."""

import hashlib
import re
from typing import Any, Final

import msgspec

from apps.core.exceptions import InvalidRequest

_TAG: Final = re.compile(r'(?:W/)?"([!#-~]*)"')
_DIGITS: Final = 32


def tag_of(*said: Any) -> str:
    """Return the tag of what somebody may set of a thing, as its answer has it."""
    digest = hashlib.sha256(msgspec.json.encode(said)).hexdigest()
    return f'"{digest[:_DIGITS]}"'


def tags_read(header: str | None, *, name: str) -> frozenset[str] | None:
    """Return the tags of a header, ``*`` as it is; None where it did not come.

    Raises:
        InvalidRequest: it is none of both; ``param`` is its name.
    """
    if header is None:
        return None
    if header.strip() == "*":
        return frozenset({"*"})
    words = [word.strip() for word in header.split(",")]
    found = [_TAG.fullmatch(word) for word in words]
    if not all(found):
        raise InvalidRequest(
            f"'{name}' takes an ETag as it was answered, with its quotes, or *.",
            code="invalid_value",
            param=name,
        )
    return frozenset(f'"{each[1]}"' for each in found if each is not None)
