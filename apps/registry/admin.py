"""The catalogue of models. Versions have a page of their own (``version_admin``)."""

from typing import Any

from django.contrib import admin
from django.db import models
from django.db.models import Count
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat

from apps.audit.selectors import actor_of
from apps.core.admin import ReadOnlyInline, ServiceModelAdmin, display
from apps.registry.import_admin import ImportJobAdmin
from apps.registry.models import ModelVersion, RegisteredModel
from apps.registry.services import registered_model_describe
from apps.registry.verification_admin import VerificationRunAdmin
from apps.registry.version_admin import STAGE_LABELS, ModelVersionAdmin, short_count

__all__ = ["ImportJobAdmin", "ModelVersionAdmin", "RegisteredModelAdmin", "VerificationRunAdmin"]


class ModelVersionInline(ReadOnlyInline):
    model = ModelVersion
    fields = ("version", "stage_badge", "architecture", "parameters", "dtype", "size", "created_at")
    readonly_fields = fields
    verbose_name_plural = "versions"

    @display(description="Stage", label=STAGE_LABELS)
    def stage_badge(self, version: ModelVersion) -> str:
        return version.get_stage_display()

    @display(description="Parameters")
    def parameters(self, version: ModelVersion) -> str:
        return short_count(version.n_parameters)

    @display(description="Size on disk")
    def size(self, version: ModelVersion) -> str:
        return filesizeformat(version.size_bytes)


@admin.register(RegisteredModel)
class RegisteredModelAdmin(ServiceModelAdmin):
    list_display = ("name", "description", "n_versions", "created_at")
    search_fields = ("name", "description")
    ordering = ("name",)
    fields = ("name", "description")
    readonly_fields = ("name",)
    inlines = (ModelVersionInline,)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[RegisteredModel]:
        return super().get_queryset(request).annotate(n_versions=Count("versions"))  # type: ignore[no-any-return]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        return registered_model_describe(
            model=obj, description=obj.description, actor=actor_of(request)
        )

    @display(description="Versions")
    def n_versions(self, model: Any) -> int:
        return int(model.n_versions)
