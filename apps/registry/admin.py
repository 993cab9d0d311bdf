"""The catalogue of models. Versions are made by an import and never edited."""

import json
from typing import Any

from django.contrib import admin
from django.db import models
from django.db.models import Count
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html
from django.utils.safestring import SafeString

from apps.audit.selectors import actor_of
from apps.core.admin import ReadOnlyAdmin, ReadOnlyInline, ServiceModelAdmin, display
from apps.registry.models import ModelVersion, RegisteredModel
from apps.registry.services import registered_model_describe


def short_count(number: int) -> str:
    """Return 134,515,008 as 135 M."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


class ModelVersionInline(ReadOnlyInline):
    model = ModelVersion
    fields = ("version", "architecture", "parameters", "dtype", "size", "created_at")
    readonly_fields = fields
    verbose_name_plural = "versions"

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


@admin.register(ModelVersion)
class ModelVersionAdmin(ReadOnlyAdmin):
    list_display = (
        "name",
        "architecture",
        "parameters",
        "context_length",
        "dtype",
        "size",
        "license",
        "created_at",
    )
    list_filter = ("architecture", "dtype")
    list_select_related = ("model",)
    search_fields = ("model__name", "source", "source_sha256")
    ordering = ("model__name", "-version")
    sortable_by = ("created_at",)
    fieldsets = (
        (None, {"fields": (("model", "version"), ("architecture", "parameters"), "license")}),
        ("Limits", {"fields": (("context_length", "vocab_size"), ("dtype", "size"))}),
        ("Origin", {"fields": ("source", "source_sha256")}),
        ("Files", {"fields": ("path", "manifest_sha256", "manifest_text")}),
    )
    readonly_fields = ("parameters", "size", "manifest_text")

    @display(description="Version", ordering="model__name")
    def name(self, version: ModelVersion) -> str:
        return str(version)

    @display(description="Parameters")
    def parameters(self, version: ModelVersion) -> str:
        return short_count(version.n_parameters)

    @display(description="Size on disk")
    def size(self, version: ModelVersion) -> str:
        return filesizeformat(version.size_bytes)

    @display(description="Manifest")
    def manifest_text(self, version: ModelVersion) -> SafeString:
        return format_html(
            '<pre class="max-h-96 overflow-auto text-xs">{}</pre>',
            json.dumps(version.manifest, indent=2),
        )
