"""Versions of models: what is said of them is edited, their stage is moved, two are compared."""

import json
from typing import Any

from django.contrib import admin, messages
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from unfold.enums import ActionVariant

from apps.audit.selectors import actor_of
from apps.core.access import access_in
from apps.core.admin import (
    ReadOnlyInline,
    ServiceModelAdmin,
    action,
    dialog_redirect,
    display,
    refused,
)
from apps.core.exceptions import AppError
from apps.registry.compare_page import compare_url
from apps.registry.comparing import lineage_text
from apps.registry.forms import ReasonForm, VersionForm
from apps.registry.models import ModelVersion, StageMove, VerificationRun, VersionTag
from apps.registry.selectors import chat_template, tags_in_use, verifications_passed
from apps.registry.services import (
    model_version_delete,
    model_version_describe,
    model_version_stage_move,
    verification_ask,
)
from apps.registry.stages import APPROVE
from apps.registry.types import Stage, VersionFields
from apps.registry.verification_admin import VerificationInline, figures_table

STAGE_LABELS = {"Draft": "", "Verified": "info", "Approved": "success", "Retired": "warning"}


def short_count(number: int) -> str:
    """Return 134,515,008 as 135 M."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


class TagFilter(admin.SimpleListFilter):
    title = "tag"
    parameter_name = "tag_list"  # the column, by which the list lets itself be filtered

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in tags_in_use()]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return queryset if self.value() is None else queryset.filter(tags__name=self.value())


class StageMoveInline(ReadOnlyInline):
    """How the version came to be in its stage."""

    model = StageMove
    fields = ("at", "move", "actor_label", "reason")
    readonly_fields = fields
    show_change_link = False
    hide_title = True
    verbose_name_plural = "stages so far"

    @display(description="Move")
    def move(self, move: StageMove) -> str:
        return str(move)


def _reason_dialog(title: str, description: str, submit: str) -> dict[str, Any]:
    return {
        "title": title,
        "description": description,
        "form_class": ReasonForm,
        "form_submit_text": submit,
    }


@admin.register(ModelVersion)
class ModelVersionAdmin(ServiceModelAdmin):
    form = VersionForm
    list_display = (
        "name",
        "stage_badge",
        "tag_list",
        "architecture",
        "parameters",
        "context_length",
        "dtype",
        "size",
        "license",
        "created_at",
    )
    list_filter = ("stage", TagFilter, "architecture", "dtype")
    list_select_related = ("model",)
    search_fields = ("model__name", "source", "source_sha256")
    ordering = ("model__name", "-version")
    sortable_by = ("created_at",)
    autocomplete_fields = ("parent",)
    actions = ("compare_selected",)
    actions_detail = ("rollout", "verify", "approve", "withdraw", "retire", "back_to_draft")
    inlines = (VerificationInline, StageMoveInline)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("name", "stage_badge"),
                    ("architecture", "parameters"),
                    ("license", "tags"),
                    ("lineage", "parent"),
                )
            },
        ),
        ("Figures of its last verification", {"fields": ("figures_text",)}),
        ("Model card", {"fields": ("model_card",)}),
        ("Limits", {"fields": (("context_length", "vocab_size"), ("dtype", "size"))}),
        ("Chat template", {"fields": ("template_text",)}),
        ("Origin", {"fields": ("source", "source_sha256")}),
        ("Files", {"fields": ("path", "manifest_sha256", "manifest_text")}),
    )
    readonly_fields = (
        *("name", "stage_badge", "parameters", "size", "template_text", "manifest_text"),
        "figures_text",
        *("architecture", "context_length", "vocab_size", "dtype", "source", "source_sha256"),
        *("path", "manifest_sha256"),
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[ModelVersion]:
        rows: models.QuerySet[ModelVersion] = super().get_queryset(request)
        return rows.select_related("model", "parent__model").prefetch_related("tags")

    def get_urls(self) -> list[Any]:
        return [compare_url(self.admin_site), *super().get_urls()]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_approve_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return access_in(request).may(APPROVE)

    def has_verify_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return access_in(request).may("registry.add_verificationrun")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        if self.has_change_permission(request, obj):
            return self.readonly_fields
        return (*self.readonly_fields, "lineage_said")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """To whoever only looks, the form's own fields are not there."""
        fieldsets = super().get_fieldsets(request, obj)
        if self.has_change_permission(request, obj):
            return fieldsets
        first = (("name", "stage_badge"), ("architecture", "parameters"), "license")
        return ((None, {"fields": (*first, ("tag_list", "lineage_said"))}), *fieldsets[1:])

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        fields = VersionFields(
            license=obj.license,
            tags=form.cleaned_data["tags"],
            parent=obj.parent,
            lineage=obj.lineage,
            model_card=obj.model_card,
        )
        return model_version_describe(version=obj, actor=actor_of(request), **fields)

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        model_version_delete(version=obj, actor=actor_of(request))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """What nobody deletes by hand goes with its version."""
        deleted, counts, lacking, protected = super().get_deleted_objects(objs, request)
        own = {each._meta.verbose_name for each in (StageMove, VerificationRun, VersionTag)}
        return deleted, counts, lacking - own, protected

    @action(description="Guided rollout", permissions=["view"], icon="conversion_path")
    def rollout(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return HttpResponseRedirect(f"{reverse('admin:guide')}?{urlencode({'version': object_id})}")

    @action(
        description="Verify",
        permissions=["verify"],
        icon="fact_check",
        dialog={
            "title": "Verify this version?",
            "description": "It is loaded into an engine of its own, asked, and measured. "
            "A draft that passes becomes verified.",
            "form_class": None,
            "form_submit_text": "Verify",
        },
    )
    def verify(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        version = get_object_or_404(self.get_queryset(request), pk=object_id)
        location = reverse("admin:registry_modelversion_change", args=[version.pk])
        try:
            run = verification_ask(version=version, actor=actor_of(request))
        except AppError as error:
            refused(request, error, location=location)
        else:
            location = reverse("admin:registry_verificationrun_change", args=[run.pk])
            messages.success(request, f"Verification {run} waits for the worker.")
        return dialog_redirect(request, location)

    @action(
        description="Approve",
        permissions=["approve"],
        icon="verified",
        variant=ActionVariant.PRIMARY,
        dialog=_reason_dialog(
            "Approve this version?", "It is then said to be fit for production.", "Approve"
        ),
    )
    def approve(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        return self._moved(request, form, object_id, stage=Stage.APPROVED)

    @action(
        description="Withdraw approval",
        permissions=["approve"],
        icon="remove_done",
        dialog=_reason_dialog(
            "Withdraw the approval?", "What runs goes on; the version is verified.", "Withdraw"
        ),
    )
    def withdraw(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        return self._moved(request, form, object_id, stage=Stage.VERIFIED)

    @action(
        description="Retire",
        permissions=["change"],
        icon="archive",
        variant=ActionVariant.DANGER,
        dialog=_reason_dialog(
            "Retire this version?",
            "No deployment of it is made or started any more. What runs goes on until stopped.",
            "Retire",
        ),
    )
    def retire(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        return self._moved(request, form, object_id, stage=Stage.RETIRED)

    @action(
        description="Back to draft",
        permissions=["change"],
        icon="undo",
        dialog=_reason_dialog(
            "Make it a draft again?", "It has to be verified before it can be approved.", "Do so"
        ),
    )
    def back_to_draft(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        return self._moved(request, form, object_id, stage=Stage.DRAFT)

    def _moved(
        self, request: HttpRequest, form: Any, object_id: str, *, stage: Stage
    ) -> HttpResponse:
        version = get_object_or_404(self.get_queryset(request), pk=object_id)
        location = reverse("admin:registry_modelversion_change", args=[version.pk])
        try:
            model_version_stage_move(
                version=version,
                stage=stage,
                by=access_in(request),
                actor=actor_of(request),
                reason=form.cleaned_data["reason"],
            )
        except AppError as error:
            refused(request, error, location=location)
        else:
            messages.success(request, f"{version} is {stage.label.lower()}.")
        return dialog_redirect(request, location)

    @action(description="Compare the two selected versions", permissions=["view"])
    def compare_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        keys = list(queryset.order_by("pk").values_list("pk", flat=True)[:3])
        if len(keys) != 2:
            messages.error(request, "Select two versions to compare.")
            return None
        query = urlencode({"left": keys[0], "right": keys[1]})
        return HttpResponseRedirect(f"{reverse('admin:registry_modelversion_compare')}?{query}")

    @display(description="Version", ordering="model__name")
    def name(self, version: ModelVersion) -> str:
        return str(version)

    @display(description="Stage", label=STAGE_LABELS, ordering="stage")
    def stage_badge(self, version: ModelVersion) -> str:
        return version.get_stage_display()

    @display(description="Tags")
    def tag_list(self, version: ModelVersion) -> str:
        return ", ".join(version.tag_names) or "-"

    @display(description="Made by")
    def lineage_said(self, version: ModelVersion) -> str:
        return lineage_text(version) or "-"

    @display(description="Parameters")
    def parameters(self, version: ModelVersion) -> str:
        return short_count(version.n_parameters)

    @display(description="Size on disk")
    def size(self, version: ModelVersion) -> str:
        return filesizeformat(version.size_bytes)

    @display(description="Manifest")
    def manifest_text(self, version: ModelVersion) -> SafeString:
        return _verbatim(json.dumps(version.manifest, indent=2))

    @display(description="Measured")
    def figures_text(self, version: ModelVersion) -> SafeString:
        run = verifications_passed([version.pk]).get(version.pk)
        return figures_table({} if run is None else run.figures)

    @display(description="Jinja")
    def template_text(self, version: ModelVersion) -> SafeString:
        return _verbatim(
            chat_template(version) or "It has none: it completes texts, or embeds them."
        )


def _verbatim(text: str) -> SafeString:
    return format_html(
        '<pre class="max-h-96 overflow-auto text-xs whitespace-pre-wrap">{}</pre>', text
    )
