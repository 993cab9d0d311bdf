"""Verifications: what was seen of a version, and how far one that runs is."""

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.enums import ActionVariant

from apps.audit.selectors import actor_of
from apps.core.access import access_in
from apps.core.admin import ReadOnlyAdmin, ReadOnlyInline, action, dialog_redirect, display, refused
from apps.core.exceptions import AppError
from apps.registry.models import VerificationRun
from apps.registry.progress import verification_progress
from apps.registry.services import verification_cancel
from apps.registry.wording import figure_texts

STATUS_LABELS = {
    "Queued": "info",
    "Running": "info",
    "Passed": "success",
    "Failed": "danger",
    "Cancelled": "warning",
}


def figures_table(figures: dict[str, float]) -> SafeString:
    """Return figures in words, a row each."""
    return _rows(figure_texts(figures))


def _rows(pairs: list[tuple[str, str]]) -> SafeString:
    if not pairs:
        return SafeString("-")
    rows = format_html_join(
        "",
        '<tr><td class="pr-6 py-1">{}</td><td class="py-1 font-mono">{}</td></tr>',
        pairs,
    )
    return format_html("<table><tbody>{}</tbody></table>", rows)


class VerificationInline(ReadOnlyInline):
    model = VerificationRun
    fields = ("id", "status_badge", "progress", "error", "asked_by_label", "created_at")
    readonly_fields = fields
    hide_title = True
    verbose_name_plural = "verifications"

    @display(description="Status", label=STATUS_LABELS)
    def status_badge(self, run: VerificationRun) -> str:
        return run.get_status_display()

    @display(description="Progress")
    def progress(self, run: VerificationRun) -> str:
        return verification_progress(run)


@admin.register(VerificationRun)
class VerificationRunAdmin(ReadOnlyAdmin):
    list_display = (
        "id",
        "version",
        "status_badge",
        "progress",
        "error",
        "asked_by_label",
        "created_at",
    )
    list_filter = ("status",)
    list_select_related = ("version__model",)
    search_fields = ("version__model__name", "asked_by_label")
    search_help_text = "A model's name, or who asked"
    ordering = ("-id",)
    sortable_by = ()
    actions_detail = ("cancel",)
    fieldsets = (
        (None, {"fields": (("version", "status_badge"), ("progress", "asked_by_label"), "error")}),
        ("Figures", {"fields": ("figures_text",)}),
        ("Checks", {"fields": ("checks_text",)}),
        ("End of the engine's log", {"fields": ("log_text",)}),
        (
            "Life",
            {"fields": (("created_at", "started_at", "ended_at"), ("attempt", "lease_owner"))},
        ),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("status_badge", "progress", "figures_text", "checks_text", "log_text")

    @action(
        description="Cancel",
        permissions=["cancel"],
        icon="block",
        variant=ActionVariant.DANGER,
        dialog={
            "title": "Cancel this verification?",
            "description": "Its engine is ended, and the version stays in its stage.",
            "form_class": None,
            "form_submit_text": "Cancel the verification",
        },
    )
    def cancel(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        run = get_object_or_404(self.get_queryset(request), pk=object_id)
        location = reverse("admin:registry_verificationrun_change", args=[run.pk])
        try:
            verification_cancel(run=run, actor=actor_of(request))
        except AppError as error:
            refused(request, error, location=location)
        else:
            messages.success(request, f"Verification {run} is being cancelled.")
        return dialog_redirect(request, location)

    def has_cancel_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return access_in(request).may("registry.change_verificationrun")

    @display(description="Status", label=STATUS_LABELS, ordering="status")
    def status_badge(self, run: VerificationRun) -> str:
        return run.get_status_display()

    @display(description="Progress")
    def progress(self, run: VerificationRun) -> str:
        return verification_progress(run)

    @display(description="Measured")
    def figures_text(self, run: VerificationRun) -> SafeString:
        return figures_table(run.figures)

    @display(description="Seen")
    def checks_text(self, run: VerificationRun) -> SafeString:
        return _rows(
            [
                (f"{'✓' if check['is_passed'] else '✗'} {check['name']}", check["said"])
                for check in run.checks
            ]
        )

    @display(description="Last lines")
    def log_text(self, run: VerificationRun) -> SafeString:
        return format_html(
            '<pre class="max-h-96 overflow-auto text-xs whitespace-pre-wrap">{}</pre>',
            run.log or "Nothing.",
        )
