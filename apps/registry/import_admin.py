"""Imports, as pages: begun, watched and cancelled there."""

from typing import Any

from django.contrib import admin, messages
from django.db import models
from django.forms.widgets import Script
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import reverse
from unfold.enums import ActionVariant

from apps.audit.selectors import actor_of
from apps.core.admin import (
    ServiceModelAdmin,
    action,
    dialog_redirect,
    display,
    refused,
)
from apps.core.exceptions import AppError
from apps.registry.import_forms import ImportJobForm
from apps.registry.import_jobs import import_job_cancel, import_job_create
from apps.registry.import_pages import import_urls
from apps.registry.models import ImportJob

_STATE_LABELS = {
    "Uploading": "info",
    "Queued": "info",
    "Running": "info",
    "Cancelling": "warning",
    "Done": "success",
    "Failed": "danger",
    "Cancelled": "warning",
}


@admin.register(ImportJob)
class ImportJobAdmin(ServiceModelAdmin):
    """Begun and cancelled here; what becomes of an import is a worker's to write."""

    form = ImportJobForm
    list_display = ("model_name", "came_from", "state", "progress", "actor_label", "created_at")
    list_filter = ("status", "kind")
    list_select_related = ("model_version__model",)
    search_fields = ("model_name", "source", "source_sha256")
    ordering = ("-id",)
    sortable_by = ()
    actions_detail = ("cancel",)
    actions_row = ("cancel",)
    add_fieldsets = ((None, {"fields": ("model_name", "kind", "source", "expected_sha256")}),)
    fieldsets = (
        (
            "Details",
            {
                "fields": (
                    ("model_name", "kind"),
                    "expected_sha256",
                    ("actor_label", "created_at"),
                )
            },
        ),
    )
    change_form_before_template = "registry/import_job.html"

    class Media:
        js = (Script("console/import_job.js", type="module"),)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fieldsets if obj else self.add_fieldsets

    def get_urls(self) -> list[Any]:
        return [*import_urls(self), *super().get_urls()]

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        return import_job_create(
            model_name=obj.model_name,
            kind=obj.kind,
            source=obj.source,
            expected_sha256=obj.expected_sha256,
            actor=actor_of(request),
        )

    def response_add(
        self, request: HttpRequest, obj: Any, post_url_continue: str | None = None
    ) -> HttpResponse:
        return HttpResponseRedirect(reverse("admin:registry_importjob_change", args=[obj.pk]))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_cancel_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return bool(super().has_change_permission(request))

    @action(
        description="Cancel",
        permissions=["cancel"],
        icon="block",
        variant=ActionVariant.DANGER,
        dialog={
            "title": "Cancel this import?",
            "description": "It stops, and nothing of it is kept.",
            "form_class": None,
            "form_submit_text": "Cancel the import",
        },
    )
    def cancel(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        job = get_object_or_404(self.get_queryset(request), pk=object_id)
        location = reverse("admin:registry_importjob_change", args=[job.pk])
        try:
            import_job_cancel(job=job, actor=actor_of(request))
        except AppError as error:
            refused(request, error, location=location)
        else:
            messages.success(request, f"The import of {job.model_name} is being cancelled.")
        return dialog_redirect(request, location)

    @display(description="From")
    def came_from(self, job: ImportJob) -> str:
        return job.source.rpartition("/")[2] or "-"

    @display(description="State", label=_STATE_LABELS)
    def state(self, job: ImportJob) -> str:
        return job.get_status_display()

    @display(description="Progress")
    def progress(self, job: ImportJob) -> str:
        if job.status == ImportJob.Status.DONE:
            return str(job.model_version or "-")
        return f"{job.stage} {job.percent} %".strip() if job.is_open else "-"
