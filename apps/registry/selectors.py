"""Reads of the registry room."""

import re
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Final

from django.conf import settings
from django.db.models import Count, Max, Q, QuerySet

from apps.registry.artifacts import (
    artifact_chunks,
    artifact_of,
    remote_storage,
    version_dir,
)
from apps.registry.comparing import facts_compared, figures_compared, files_compared
from apps.registry.import_sources import sources_below_roots
from apps.registry.models import (
    MAX_CARD_CHARS,
    ImportJob,
    ModelVersion,
    RegisteredModel,
    VerificationRun,
    VersionTag,
)
from apps.registry.progress import import_progress, verification_progress
from apps.registry.shapes import shape_read
from apps.registry.types import Comparison, ModelShape, VerificationStatus
from apps.registry.vocabularies import vocabulary_sha256
from apps.registry.wording import figure_lines, figure_texts

__all__ = [
    "artifact_chunks",
    "artifact_of",
    "chat_template",
    "chat_template_in",
    "figure_lines",
    "figure_texts",
    "import_jobs",
    "import_jobs_of",
    "import_progress",
    "is_vocabulary_shared",
    "model_card_in",
    "model_shape",
    "model_version_get",
    "model_version_latest",
    "model_version_named",
    "model_version_of",
    "model_versions_all",
    "model_versions_described",
    "registered_models",
    "remote_storage",
    "sources_below_roots",
    "stage_refusal",
    "tags_in_use",
    "verification_get",
    "verification_latest",
    "verification_progress",
    "verification_runs",
    "verifications_claimable",
    "verifications_of",
    "verifications_passed",
    "version_dir",
    "versions_compared",
]

_TEMPLATE_MOST_BYTES: Final = 64 * 1024
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")
TOKENIZER: Final = "tokenizer.json"


def model_version_latest(name: str) -> ModelVersion | None:
    """Return the newest version of a model, or None when there is none."""
    versions = ModelVersion.objects.select_related("model").filter(model__name=name)
    return versions.order_by("-version").first()


def model_version_of(name: str, *, number: int) -> ModelVersion | None:
    """Return one version of a model, or None when there is none."""
    versions = ModelVersion.objects.select_related("model")
    return versions.filter(model__name=name, version=number).first()


def model_version_named(text: str) -> ModelVersion | None:
    """Return the version that ``NAME:NUMBER`` names, or the newest of ``NAME``; None where there
    is none."""
    name, mark, number = text.partition(":")
    if not mark:
        return model_version_latest(name)
    return model_version_of(name, number=int(number)) if _NUMBER.fullmatch(number) else None


def model_versions_all() -> list[ModelVersion]:
    """Return every version with its model, in one query."""
    return list(ModelVersion.objects.select_related("model"))


def model_version_get(model_version_id: int) -> ModelVersion | None:
    return ModelVersion.objects.select_related("model").filter(pk=model_version_id).first()


def model_versions_described() -> "QuerySet[ModelVersion]":
    """Return the versions with all that is said of them, by name and number, in two queries."""
    rows = ModelVersion.objects.select_related("model", "parent__model").prefetch_related("tags")
    return rows.order_by("model__name", "-version")


def registered_models() -> "QuerySet[RegisteredModel]":
    """Return the models by name, each with the number of its versions and that of the newest."""
    rows = RegisteredModel.objects.annotate(
        n_versions=Count("versions"), latest_version=Max("versions__version")
    )
    return rows.order_by("name")


def import_jobs() -> "QuerySet[ImportJob]":
    """Return the imports with what came of them, the newest first."""
    return ImportJob.objects.select_related("model_version__model").order_by("-id")


def verification_runs() -> "QuerySet[VerificationRun]":
    """Return the verifications with their versions, the newest first."""
    return VerificationRun.objects.select_related("version__model").order_by("-id")


def versions_compared(left: ModelVersion, right: ModelVersion) -> Comparison:
    """Return two versions side by side: what the catalogue says of both, what the newest
    verification that each passed has measured, and their files."""
    runs = verifications_passed([left.pk, right.pk])
    of_left, of_right = (runs[each.pk].figures if each.pk in runs else {} for each in (left, right))
    return Comparison(
        facts=tuple(facts_compared(left, right)),
        figures=tuple(figures_compared(left=of_left, right=of_right)),
        files=tuple(files_compared(left, right)),
    )


def model_card_in(directory: Path) -> str:
    """Return the model card of a model directory, cut where it is very long; empty where there is
    none."""
    return _text_of(directory / "README.md", most_bytes=MAX_CARD_CHARS)


def chat_template(version: ModelVersion) -> str:
    """Return how a chat becomes a prompt of this version, cut where it is very long; empty where
    its files say nothing of it."""
    if version.chat_template is not None:
        return version.chat_template
    directory = version_dir(version)
    return "" if directory is None else chat_template_in(directory)


def chat_template_in(directory: Path) -> str:
    """Return the chat template of a model directory, in the same way."""
    return _text_of(directory / "chat_template.jinja", most_bytes=_TEMPLATE_MOST_BYTES)


def _text_of(file: Path, *, most_bytes: int) -> str:
    try:
        with file.open("rb") as handle:
            text = handle.read(most_bytes).decode("utf-8", errors="replace")
    except OSError:
        return ""
    return text.replace("\0", "")  # which PostgreSQL keeps in no text


def tags_in_use() -> list[str]:
    """Return the names of tags that versions have, by the alphabet."""
    return list(VersionTag.objects.order_by("name").values_list("name", flat=True).distinct())


def verifications_passed(version_ids: Collection[int]) -> dict[int, VerificationRun]:
    """Return the newest verification that each of these versions passed, in one query."""
    rows = VerificationRun.objects.filter(
        version_id__in=version_ids, status=VerificationStatus.PASSED
    )
    return {run.version_id: run for run in rows.order_by("id")}


def verifications_claimable(now: datetime) -> "QuerySet[VerificationRun]":
    """Return the open verifications that no worker has in hand, who waited longest first."""
    free = Q(lease_until=None) | Q(lease_until__lt=now)
    return VerificationRun.objects.filter(free, status__in=VerificationRun.OPEN).order_by("id")


def verification_latest(version_id: int) -> VerificationRun | None:
    """Return the newest verification of a version, however it went."""
    return VerificationRun.objects.filter(version_id=version_id).order_by("-id").first()


def verifications_of(run_ids: Collection[int]) -> list[VerificationRun]:
    """Return these verifications as they stand, in one query, without what they found."""
    rows = VerificationRun.objects.filter(pk__in=run_ids)
    return list(rows.only("status", "step", "percent"))


def import_jobs_of(job_ids: Collection[int]) -> list[ImportJob]:
    """Return these imports as they stand, in one query, without their logs."""
    return list(ImportJob.objects.filter(pk__in=job_ids).defer("log", "error"))


def stage_refusal(version: ModelVersion) -> str:
    """Say why no deployment may be made or started of a version in its stage; empty where one
    may."""
    if version.stage in settings.DEPLOY_STAGES:
        return ""
    allowed = " or ".join(settings.DEPLOY_STAGES)
    return f"{version} is {version.stage}; a deployment needs a version that is {allowed}."


def verification_get(run_id: int) -> VerificationRun:
    return VerificationRun.objects.select_related("version__model").get(pk=run_id)


def model_shape(version: ModelVersion) -> ModelShape | None:
    """Return the sizes of its parts; None where neither its row nor its files say them."""
    if version.shape is not None:
        return ModelShape(**version.shape)
    directory = version_dir(version)
    return None if directory is None else shape_read(directory / "config.json")


def is_vocabulary_shared(left: ModelVersion, right: ModelVersion) -> bool | None:
    """Return whether each id is the same token to both; None where nobody knows."""
    files = [each.manifest.get("files", {}).get(TOKENIZER, {}) for each in (left, right)]
    hashes = [file.get("sha256") for file in files]
    if hashes[0] and hashes[0] == hashes[1]:
        return True
    of_left, of_right = _vocabulary_sha256(left), _vocabulary_sha256(right)
    return of_left == of_right if of_left and of_right else None


def _vocabulary_sha256(version: ModelVersion) -> str:
    if version.vocabulary_sha256:
        return version.vocabulary_sha256
    directory = version_dir(version)
    return "" if directory is None else vocabulary_sha256(directory / TOKENIZER)
