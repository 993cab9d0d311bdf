"""What passes between the parts of the batch room."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec

from apps.rbac.types import Principal

ENDPOINTS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
)
WINDOW: Final = "24h"
DOOR: Final = "batch"
PRIORITY: Final = -1  # whoever waits for an answer goes first
WAKE: Final = "batches.work"  # the task that a message asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file that was received: its bytes lie in ``draft`` until a row owns them."""

    filename: str
    purpose: str
    draft: Path
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request of an input file: where its bytes are."""

    number: int
    custom_id: str
    offset: int
    n_bytes: int


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with an input file, as clients read it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    def plain(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A batch in one worker's hands, until its lease ends."""

    pk: int
    tenant_id: int
    batch_id: str
    owner: str
    status: str
    endpoint: str
    input_file_id: str
    api_token_id: int
    family_id: int | None
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenItem:
    """A line that a worker answers, in whose name as of the moment it was taken. ``attempt`` is
    what its result is written under."""

    pk: int
    batch_pk: int
    line: Line
    attempt: int
    principal: Principal


class Outcome(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a batch ends, and what its error file says of lines that were never answered.

    status, body: the answer they get; without one, code and message.
    """

    outcome: Outcome
    code: str = ""
    message: str = ""
    status: int | None = None
    body: bytes = b"null"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOutput:
    """A file of results, written and in its place. file_id: empty when there was nothing to say."""

    file_id: str
    size_bytes: int = 0
    n_lines: int = 0
