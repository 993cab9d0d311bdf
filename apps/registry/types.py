"""What an import reports while it runs, what passes between the parts of its job, and what is said
of a version."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from django.db import models

from apps.audit.types import Actor

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


class VerificationStep(models.TextChoices):
    """What a verification does, in this order."""

    FILES = "files", "Reading the files"
    LOADING = "loading", "Loading the model"
    ANSWERS = "answers", "Asking it"
    PERPLEXITY = "perplexity", "Measuring perplexity"
    LATENCY = "latency", "Measuring latency"


class VerificationStatus(models.TextChoices):
    QUEUED = "queued", "Queued"
    RUNNING = "running", "Running"
    PASSED = "passed", "Passed"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationCheck:
    """One thing that a version has to do, and whether it does; ``said`` is what was seen."""

    name: str
    is_passed: bool
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationClaim:
    """A verification in one worker's hands, until its lease ends. attempt: counts its workers."""

    pk: int
    version_id: int
    owner: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationOutcome:
    """How a verification ended. error: empty where it passed. figures: by names in ``FIGURES``.
    log: the end of the engine's."""

    error: str = ""
    checks: tuple[VerificationCheck, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    log: str = ""
    is_cancelled: bool = False


VERIFY_WORK: Final = "verification.work"  # the task that a message asks for
MOST_ATTEMPTS: Final = 3


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
    """How far a stage is: bytes when unpacking or sending, tensors when converting."""

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

WAKE_IMPORTS: Final = "registry.import"  # the task that a message asks for
UPLOAD_SUFFIXES: Final = (".gguf", ".whl", ".zip", ".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportClaim:
    """A job in one worker's hands, until its lease ends. ``actor`` is who asked for it."""

    pk: int
    owner: str
    model_name: str
    kind: str
    source: Path
    expected_sha256: str
    actor: Actor


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a model's parts, by which its memory is reckoned."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int


Verdict = Literal["same", "differs", "left only", "right only"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRow:
    """One fact of both. ratio: the right one by the left one, where both are numbers."""

    label: str
    left: str
    right: str
    ratio: float | None = None

    @property
    def is_different(self) -> bool:
        return self.left != self.right


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """One file of their manifests, by its size and SHA-256; empty where one has it not."""

    name: str
    left: str
    right: str
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two versions side by side. files: those that differ first."""

    facts: tuple[CompareRow, ...]
    figures: tuple[CompareRow, ...]
    files: tuple[FileRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The files of a version in a storage that they must be fetched from. path: their folder there.
    manifest_sha256: by which they are known on every machine. size_bytes: of all of them."""

    path: str
    manifest_sha256: str
    size_bytes: int
