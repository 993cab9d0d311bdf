"""Reads of the registry room."""

from apps.registry.models import ModelVersion


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
