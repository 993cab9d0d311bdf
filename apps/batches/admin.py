"""Batches and files, to read; a batch can be cancelled. What is in a file is not shown."""

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from unfold.enums import ActionVariant

from apps.audit.selectors import actor_of
from apps.batches.models import Batch, UploadedFile
from apps.batches.services import batch_cancel
from apps.core.admin import ReadOnlyAdmin, action, dialog_redirect, display, refused
from apps.core.exceptions import AppError
from apps.core.scoped_admin import TenantScoped

_STATE_LABELS = {
    "Validating": "info",
    "In progress": "info",
    "Finalizing": "info",
    "Cancelling": "warning",
    "Completed": "success",
    "Failed": "danger",
    "Expired": "danger",
    "Cancelled": "warning",
}


@admin.register(Batch)
class BatchAdmin(ReadOnlyAdmin, TenantScoped):
    list_display = ("batch_id", "tenant", "state", "endpoint", "progress", "created_at")
    list_filter = ("status", "endpoint")
    list_select_related = ("tenant",)
    search_fields = ("batch_id", "tenant__name")
    search_help_text = "An id, or a tenant's name"
    ordering = ("-id",)
    sortable_by = ()
    actions_detail = ("cancel",)
    actions_row = ("cancel",)
    fieldsets = (
        (None, {"fields": (("batch_id", "tenant"), ("state", "endpoint"), "progress", "errors")}),
        ("Files", {"fields": ("input_file_id", ("output_file_id", "error_file_id"))}),
        (
            "Life",
            {
                "fields": (
                    ("created_at", "expires_at"),
                    ("in_progress_at", "finalizing_at"),
                    ("cancelling_at", "ended_at"),
                    ("lease_owner", "lease_until"),
                    ("api_token_id", "metadata"),
                )
            },
        ),
    )

    @action(
        description="Cancel",
        permissions=["cancel"],
        icon="block",
        variant=ActionVariant.DANGER,
        dialog={
            "title": "Cancel this batch?",
            "description": "No further request of it starts; what was answered is kept.",
            "form_class": None,
            "form_submit_text": "Cancel the batch",
        },
    )
    def cancel(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        batch = get_object_or_404(self.get_queryset(request), pk=object_id)
        location = reverse("admin:batches_batch_changelist")
        try:
            batch_cancel(batch=batch, actor=actor_of(request))
        except AppError as error:
            refused(request, error, location=location)
        else:
            messages.success(request, f"Batch {batch} is being cancelled.")
        return dialog_redirect(request, location)

    def has_cancel_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return self._may(request, "change", object_id)

    @display(description="State", label=_STATE_LABELS)
    def state(self, batch: Batch) -> str:
        return batch.get_status_display()

    @display(description="Answered, failed, of")
    def progress(self, batch: Batch) -> str:
        return f"{batch.n_completed:,}, {batch.n_failed:,}, {batch.n_total:,}"


@admin.register(UploadedFile)
class UploadedFileAdmin(ReadOnlyAdmin, TenantScoped):
    list_display = ("file_id", "filename", "tenant", "purpose", "size", "created_at")
    list_filter = ("purpose",)
    list_select_related = ("tenant",)
    search_fields = ("file_id", "filename", "tenant__name")
    ordering = ("-id",)
    sortable_by = ()
    fields = (("file_id", "filename"), ("tenant", "purpose"), ("size", "created_at"))

    @display(description="Size")
    def size(self, row: UploadedFile) -> str:
        return f"{row.size_bytes:,} bytes"
