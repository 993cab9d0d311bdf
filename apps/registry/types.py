"""What an import reports while it runs, and what is said of a version."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from django.db import models

if TYPE_CHECKING:
    from apps.registry.models import ModelVersion

Task = Literal["generate", "embed"]

# Those that turn a text into a vector; every other one goes on writing it.
EMBEDDING_ARCHITECTURES: Final = frozenset({"BertModel"})


class Stage(models.TextChoices):
    """How far a version has come; ``registry.stages`` says from where it may go where."""

    DRAFT = "draft", "Draft"
    VERIFIED = "verified", "Verified"
    APPROVED = "approved", "Approved"
    RETIRED = "retired", "Retired"


class Lineage(models.TextChoices):
    """What was done to a version's parent to make it."""

    QUANTISED = "quantised", "Quantised from"
    FINE_TUNED = "fine_tuned", "Fine-tuned from"


class VersionFields(TypedDict, total=False):
    """What a person may write of a version. tags: names, in any order."""

    license: str
    tags: tuple[str, ...]
    parent: "ModelVersion | None"
    lineage: str
    model_card: str


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
