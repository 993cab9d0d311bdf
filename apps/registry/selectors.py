"""Reads of the registry room."""

from pathlib import Path
from typing import Final

from django.conf import settings
from django.db.models import QuerySet

from apps.registry.models import ModelVersion, VersionTag

_TEMPLATE_MOST_BYTES: Final = 64 * 1024


def model_version_latest(name: str) -> ModelVersion | None:
    """Return the newest version of a model, or None when there is none."""
    versions = ModelVersion.objects.select_related("model").filter(model__name=name)
    return versions.order_by("-version").first()


def model_version_of(name: str, *, number: int) -> ModelVersion | None:
    """Return one version of a model, or None when there is none."""
    versions = ModelVersion.objects.select_related("model")
    return versions.filter(model__name=name, version=number).first()


def model_versions_all() -> list[ModelVersion]:
    """Return every version with its model, in one query."""
    return list(ModelVersion.objects.select_related("model"))


def model_version_get(model_version_id: int) -> ModelVersion | None:
    return ModelVersion.objects.select_related("model").filter(pk=model_version_id).first()


def model_versions_described() -> "QuerySet[ModelVersion]":
    """Return the versions with all that is said of them, by name and number, in two queries."""
    rows = ModelVersion.objects.select_related("model", "parent__model").prefetch_related("tags")
    return rows.order_by("model__name", "-version")


def chat_template(version: ModelVersion) -> str:
    """Return how a chat becomes a prompt of this version, cut where it is very long; empty where
    its files say nothing of it."""
    file = Path(settings.MODELS_DIR) / version.path / "chat_template.jinja"
    try:
        with file.open("rb") as handle:
            return handle.read(_TEMPLATE_MOST_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""


def tags_in_use() -> list[str]:
    """Return the names of tags that versions have, by the alphabet."""
    return list(VersionTag.objects.order_by("name").values_list("name", flat=True).distinct())
