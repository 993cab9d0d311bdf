"""Identifiers made by the server."""

import secrets
import time
from typing import Final

MAX_ATTEMPTS: Final = 4  # places that one request is tried at
_LATER: Final = frozenset(str(number) for number in range(2, MAX_ATTEMPTS + 1))


def new_id(prefix: str) -> str:
    """Return ``prefix-`` and 32 hex digits that sort by time: 48 bits of milliseconds (as UUID
    version 7 of RFC 9562 has them), then 80 random bits."""
    return f"{prefix}-{int(time.time() * 1000):012x}{secrets.token_hex(10)}"


def attempt_id(request_id: str, attempt: int) -> str:
    """Return the id of a request's row for one of its attempts; the first has its own."""
    return request_id if attempt == 1 else f"{request_id}-{attempt}"


def attempt_ids(row_id: str, attempt: int) -> list[str]:
    """Return what the rows of all attempts of a request are called, where one of them is this."""
    first = row_id if attempt == 1 else row_id.removesuffix(f"-{attempt}")
    return [attempt_id(first, number) for number in range(1, MAX_ATTEMPTS + 1)]


def is_first_attempt(row_id: str) -> bool:
    """Say whether a row is the first of its request, by its id."""
    return row_id.rpartition("-")[2] not in _LATER
