"""What an import reports while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Task = Literal["generate", "embed"]

# Those that turn a text into a vector; every other one goes on writing it.
EMBEDDING_ARCHITECTURES: Final = frozenset({"BertModel"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceIdentified:
    """The artifact was hashed; comes first and once."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProgress:
    """How far a stage is: bytes when unpacking, tensors when converting."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionDone:
    """The model directory is complete; comes last and once."""

    manifest: Mapping[str, Any]
    manifest_sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AlreadyImported:
    """The same artifact was imported before as ``version``; nothing was done."""

    version: int


ConversionEvent = SourceIdentified | ImportProgress | ConversionDone
ImportEvent = ConversionEvent | AlreadyImported
