"""Models, versions, imports and verifications on the wire."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from apps.management.wire.common import (
    END,
    ManagedPage,
    Name,
    PageQuery,
    seconds,
    seconds_or_none,
    version_id,
    version_id_or_none,
)

if TYPE_CHECKING:
    from apps.registry.models import ImportJob, ModelVersion, RegisteredModel, VerificationRun
    from apps.registry.types import CompareRow, Comparison

Tag = Annotated[str, Meta(max_length=40, pattern=rf"^[a-z0-9][a-z0-9._-]*{END}")]
StageName = Literal["draft", "verified", "approved", "retired"]
ImportStatus = Literal[
    "uploading", "queued", "running", "cancelling", "done", "failed", "cancelled"
]
RunStatus = Literal["queued", "running", "passed", "failed", "cancelled"]


class ModelChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    description: Annotated[str, Meta(max_length=100_000)]


class RegisteredModelObject(msgspec.Struct, kw_only=True):
    id: str
    object: str = "registered_model"
    created_at: int
    description: str
    n_versions: int
    latest_version: int | None


class RegisteredModelPage(ManagedPage, kw_only=True):
    data: tuple[RegisteredModelObject, ...]


class VersionQuery(PageQuery, kw_only=True, forbid_unknown_fields=True):
    stage: StageName | None = None
    tag: Name | None = None


class VersionChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is left out stays. ``parent``: NAME:NUMBER of the version that it was made of, and
    ``lineage`` how; both or neither."""

    license: Annotated[str, Meta(max_length=120)] | UnsetType = UNSET
    tags: Annotated[tuple[Tag, ...], Meta(max_length=100)] | UnsetType = UNSET
    parent: Name | UnsetType | None = UNSET
    lineage: Literal["", "quantised", "fine_tuned"] | UnsetType = UNSET
    model_card: Annotated[str, Meta(max_length=262_144)] | UnsetType = UNSET


class StageBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    stage: StageName
    reason: Annotated[str, Meta(max_length=500)] = ""


class VersionObject(msgspec.Struct, kw_only=True):
    """``id`` is NAME:NUMBER."""

    id: str
    object: str = "model_version"
    created_at: int
    model: str
    version: int
    stage: str
    tags: tuple[str, ...]
    license: str
    parent: str | None
    lineage: str
    architecture: str
    task: str
    n_parameters: int
    context_length: int
    vocab_size: int
    dtype: str
    size_bytes: int
    source: str
    source_sha256: str
    manifest_sha256: str


class VersionPage(ManagedPage, kw_only=True):
    data: tuple[VersionObject, ...]


class StageMoveObject(msgspec.Struct, kw_only=True):
    before: str
    after: str
    reason: str
    by: str
    at: int


class VersionDetail(VersionObject, kw_only=True):
    """``figures``: of the newest verification that it passed."""

    model_card: str
    manifest: dict[str, Any]
    figures: dict[str, float]
    moves: tuple[StageMoveObject, ...]


class CompareQuery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    to: Name


class ComparedFact(msgspec.Struct, kw_only=True):
    """``ratio``: of the right one by the left one, where both are numbers."""

    label: str
    left: str
    right: str
    is_different: bool
    ratio: float | None


class ComparedFile(msgspec.Struct, kw_only=True):
    name: str
    left: str
    right: str
    verdict: str


class ComparisonObject(msgspec.Struct, kw_only=True):
    object: str = "comparison"
    left: str
    right: str
    facts: tuple[ComparedFact, ...]
    figures: tuple[ComparedFact, ...]
    files: tuple[ComparedFile, ...]


class ImportQuery(PageQuery, kw_only=True, forbid_unknown_fields=True):
    status: ImportStatus | None = None


class UploadBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    filename: Name
    size_bytes: Annotated[int, Meta(ge=1, le=2**53)]


class ImportBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Either ``source``, a file or folder below the roots that the server imports from, or
    ``upload``, a file that is then sent. ``sha256``: what it must have, if that is known."""

    model: Annotated[str, Meta(max_length=120, pattern=rf"^[A-Za-z0-9][A-Za-z0-9._-]*{END}")]
    source: Annotated[str, Meta(min_length=1, max_length=500)] | UnsetType = UNSET
    upload: UploadBody | UnsetType = UNSET
    sha256: Annotated[str, Meta(max_length=64)] = ""


class ImportObject(msgspec.Struct, kw_only=True):
    """``version``: NAME:NUMBER of what came of it, once it is done. ``n_received_bytes``: of an
    upload, where it goes on."""

    id: str
    object: str = "import"
    created_at: int
    model: str
    kind: str
    source: str
    status: str
    stage: str
    percent: int
    size_bytes: int
    n_received_bytes: int
    expected_sha256: str
    source_sha256: str
    n_attempts: int
    error: str
    error_param: str
    version: str | None
    asked_by: str
    started_at: int | None
    ended_at: int | None


class ImportPage(ManagedPage, kw_only=True):
    data: tuple[ImportObject, ...]


class VerificationQuery(PageQuery, kw_only=True, forbid_unknown_fields=True):
    status: RunStatus | None = None


class VerificationBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``version``: NAME:NUMBER, or NAME for its newest version."""

    version: Name


class VerificationCheckObject(msgspec.Struct, kw_only=True):
    name: str
    is_passed: bool
    said: str


class VerificationObject(msgspec.Struct, kw_only=True):
    id: str
    object: str = "verification"
    created_at: int
    version: str
    status: str
    step: str
    percent: int
    attempt: int
    checks: tuple[VerificationCheckObject, ...]
    figures: dict[str, float]
    error: str
    asked_by: str
    started_at: int | None
    ended_at: int | None


class VerificationDetail(VerificationObject, kw_only=True):
    """``log``: the end of its engine's, where it failed."""

    log: str


class VerificationPage(ManagedPage, kw_only=True):
    data: tuple[VerificationObject, ...]


def model_object(row: "RegisteredModel") -> RegisteredModelObject:
    """row: as ``registered_models`` has it."""
    counted: Any = row
    return RegisteredModelObject(
        id=row.name,
        created_at=seconds(row.created_at),
        description=row.description,
        n_versions=counted.n_versions,
        latest_version=counted.latest_version,
    )


def _version_facts(row: "ModelVersion") -> dict[str, Any]:
    return {
        "id": version_id(row),
        "created_at": seconds(row.created_at),
        "model": row.model.name,
        "version": row.version,
        "stage": row.stage,
        "tags": tuple(row.tag_names),
        "license": row.license,
        "parent": version_id_or_none(row.parent),
        "lineage": row.lineage,
        "architecture": row.architecture,
        "task": row.task,
        "n_parameters": row.n_parameters,
        "context_length": row.context_length,
        "vocab_size": row.vocab_size,
        "dtype": row.dtype,
        "size_bytes": row.size_bytes,
        "source": row.source,
        "source_sha256": row.source_sha256,
        "manifest_sha256": row.manifest_sha256,
    }


def version_object(row: "ModelVersion") -> VersionObject:
    """row: as ``model_versions_described`` has it; no query."""
    return VersionObject(**_version_facts(row))


def version_detail(row: "ModelVersion", *, figures: dict[str, float]) -> VersionDetail:
    return VersionDetail(
        **_version_facts(row),
        model_card=row.model_card,
        manifest=row.manifest,
        figures=figures,
        moves=tuple(
            StageMoveObject(
                before=move.before,
                after=move.after,
                reason=move.reason,
                by=move.actor_label,
                at=seconds(move.at),
            )
            for move in row.moves.all()[:20]
        ),
    )


def comparison_object(
    left: "ModelVersion", right: "ModelVersion", found: "Comparison"
) -> ComparisonObject:
    return ComparisonObject(
        left=version_id(left),
        right=version_id(right),
        facts=tuple(_fact(each) for each in found.facts),
        figures=tuple(_fact(each) for each in found.figures),
        files=tuple(
            ComparedFile(name=each.name, left=each.left, right=each.right, verdict=each.verdict)
            for each in found.files
        ),
    )


def _fact(row: "CompareRow") -> ComparedFact:
    return ComparedFact(
        label=row.label,
        left=row.left,
        right=row.right,
        is_different=row.is_different,
        ratio=row.ratio,
    )


def import_object(row: "ImportJob") -> ImportObject:
    """row: as ``import_jobs`` has it; no query."""
    return ImportObject(
        id=row.job_id,
        created_at=seconds(row.created_at),
        model=row.model_name,
        kind=row.kind,
        source=row.source,
        status=row.status,
        stage=row.stage,
        percent=100 if row.status == "done" else row.percent,
        size_bytes=row.size_bytes,
        n_received_bytes=row.n_received_bytes,
        expected_sha256=row.expected_sha256,
        source_sha256=row.source_sha256,
        n_attempts=row.n_attempts,
        error=row.error,
        error_param=row.error_param,
        version=version_id_or_none(row.model_version),
        asked_by=row.actor_label,
        started_at=seconds_or_none(row.started_at),
        ended_at=seconds_or_none(row.ended_at),
    )


def _run_facts(row: "VerificationRun") -> dict[str, Any]:
    return {
        "id": str(row.pk),
        "created_at": seconds(row.created_at),
        "version": version_id(row.version),
        "status": row.status,
        "step": row.step,
        "percent": row.percent,
        "attempt": row.attempt,
        "checks": tuple(VerificationCheckObject(**check) for check in row.checks),
        "figures": row.figures,
        "error": row.error,
        "asked_by": row.asked_by_label,
        "started_at": seconds_or_none(row.started_at),
        "ended_at": seconds_or_none(row.ended_at),
    }


def verification_object(row: "VerificationRun") -> VerificationObject:
    """row: as ``verification_runs`` has it; no query."""
    return VerificationObject(**_run_facts(row))


def verification_detail(row: "VerificationRun") -> VerificationDetail:
    return VerificationDetail(**_run_facts(row), log=row.log)
