"""The audit trail, to read."""

import json
from datetime import datetime

from django.contrib import admin
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from apps.audit.models import AuditEvent
from apps.core.admin import ReadOnlyAdmin, display
from apps.core.scoped_admin import TenantScoped


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin, TenantScoped):
    list_display = ("when", "actor", "action_label", "object_column", "summary")
    list_display_links = ("when",)
    list_filter = ("actor_kind",)
    search_fields = ("action", "object_label", "actor_label")
    search_help_text = "Action, object or actor"
    ordering = ("-id",)
    fieldsets = (
        (None, {"fields": (("at", "action"), ("object_type", "object_id"), "object_label")}),
        ("Who", {"fields": (("actor_label", "actor_kind"), ("actor_id", "ip_address"))}),
        ("What changed", {"fields": ("changes_table", "tenant_id")}),
    )

    @display(description="When", ordering="id")
    def when(self, event: AuditEvent) -> datetime:
        return event.at

    @display(description="Actor")
    def actor(self, event: AuditEvent) -> str:
        return event.actor_label

    @display(description="Action", label=True)
    def action_label(self, event: AuditEvent) -> str:
        return event.action_text

    @display(description="Object")
    def object_column(self, event: AuditEvent) -> str:
        return event.object_label or "—"

    @display(description="Changes")
    def summary(self, event: AuditEvent) -> str:
        text = ", ".join(
            f"{name}: {_text(value[0])} → {_text(value[1])}"
            if isinstance(value, list) and len(value) == 2
            else f"{name}: {_text(value)}"
            for name, value in event.changes.items()
        )
        return text if len(text) <= 120 else f"{text[:119]}…"

    @display(description="Changes")
    def changes_table(self, event: AuditEvent) -> SafeString | str:
        if not event.changes:
            return "—"
        rows = format_html_join(
            "",
            "<tr><th>{}</th><td>{}</td></tr>",
            (
                (name, json.dumps(value, ensure_ascii=False))
                for name, value in event.changes.items()
            ),
        )
        return format_html('<table class="console-facts">{}</table>', rows)


def _text(value: object) -> str:
    return "—" if value in (None, "", []) else str(value)
