"""Engine processes as the agent observes them; to look at, never to edit."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.humanize.templatetags.humanize import naturaltime
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.enums import ActionVariant

from apps.audit.selectors import actor_of
from apps.core.admin import ReadOnlyAdmin, ReadOnlyInline, action, dialog_redirect, display
from apps.core.scoped_admin import TenantScoped
from apps.engines.models import Device, EngineProcess, Node, QuarantinedRequest
from apps.engines.selectors import engine_log_tail, reserved_of
from apps.engines.services import quarantine_lift
from apps.engines.types import STATE_LABELS


@admin.register(EngineProcess)
class EngineProcessAdmin(ReadOnlyAdmin):
    list_display = (
        "name",
        "state_badge",
        "pid",
        "epoch",
        "requests",
        "blocks",
        "memory",
        "ping",
        "last_pong",
        "restarts",
    )
    list_filter = ("state",)
    search_fields = ("name",)
    ordering = ("name",)
    sortable_by = ("name", "epoch", "restarts")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("name", "state_badge"),
                    ("pid", "epoch", "restarts"),
                    ("on", "options"),
                    "files",
                    ("last_error", "tries_again_at"),
                )
            },
        ),
        (
            "Health",
            {
                "fields": (
                    ("started_at", "ready_at", "last_pong_at"),
                    ("ping", "memory"),
                    ("requests", "blocks"),
                    "guesses",
                )
            },
        ),
        ("What it serves", {"fields": ("info_table",)}),
        ("Counters of the last pong", {"fields": ("stats_table",)}),
        ("Its latest steps", {"fields": ("steps_table",)}),
        ("Memory tiers below its KV pool", {"fields": ("tiers_table",)}),
        ("Files", {"fields": ("socket_path", "log_path")}),
        ("End of the log", {"fields": ("log",)}),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return (
            *("state_badge", "on", "options", "files", "ping", "memory", "requests", "blocks"),
            *("guesses", "restarts"),
            *("info_table", "stats_table", "steps_table", "tiers_table", "log"),
        )

    @display(description="State", label=STATE_LABELS, ordering="state")
    def state_badge(self, process: EngineProcess) -> str:
        return process.state_said

    @display(description="Devices")
    def on(self, process: Any) -> str:
        return _of_replica(process, "devices_said")

    @display(description="Options")
    def options(self, process: Any) -> str:
        return _of_replica(process, "options_said")

    @display(description="Files")
    def files(self, process: EngineProcess) -> str:
        return process.fetch_said or "-"

    @display(description="Running / waiting")
    def requests(self, process: EngineProcess) -> str:
        stats = process.stats
        return f"{stats['n_running']} / {stats['n_waiting']}" if stats else "-"

    @display(description="KV blocks free")
    def blocks(self, process: EngineProcess) -> str:
        stats = process.stats
        return f"{stats['n_blocks_free']:,} of {stats['n_blocks_total']:,}" if stats else "-"

    @display(description="Tokens guessed / accepted")
    def guesses(self, process: EngineProcess) -> str:
        n_drafted = process.stats.get("n_drafted_tokens", 0)
        if not n_drafted:
            return "-"
        n_accepted = process.stats["n_accepted_tokens"]
        return f"{n_drafted:,} / {n_accepted:,} ({n_accepted / n_drafted:.0%})"

    @display(description="Memory")
    def memory(self, process: EngineProcess) -> str:
        return filesizeformat(process.stats["rss_bytes"]) if process.stats else "-"

    @display(description="Ping")
    def ping(self, process: EngineProcess) -> str:
        return "-" if process.ping_ms is None else f"{process.ping_ms:.1f} ms"

    @display(description="Last pong")
    def last_pong(self, process: EngineProcess) -> str:
        return naturaltime(process.last_pong_at) if process.last_pong_at else "-"

    @display(description="Restarts", ordering="n_restarts")
    def restarts(self, process: EngineProcess) -> int:
        return process.n_restarts

    @display(description="Engine")
    def info_table(self, process: EngineProcess) -> SafeString:
        return _table(process.info)

    @display(description="Counters")
    def stats_table(self, process: EngineProcess) -> SafeString:
        return _table(process.stats)

    @display(description="Median, worst")
    def steps_table(self, process: EngineProcess) -> SafeString:
        return _table(process.stats.get("steps") or {})

    @display(description="Host memory and disk")
    def tiers_table(self, process: EngineProcess) -> SafeString:
        return _table(process.stats.get("tiers") or {})

    @display(description="Last 200 lines")
    def log(self, process: EngineProcess) -> SafeString:
        lines = engine_log_tail(process)
        return format_html(
            '<pre class="max-h-96 overflow-auto text-xs whitespace-pre-wrap">{}</pre>',
            "\n".join(lines) or "Nothing yet.",
        )


class DeviceInline(ReadOnlyInline):
    """What the node computes on, and which replicas are there."""

    model = Device
    show_change_link = False
    fields = ("uid", "name", "kind", "memory", "reserved", "auto_dtype", "serves")
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> QuerySet[Device]:
        rows: QuerySet[Device] = super().get_queryset(request)
        return rows.select_related("node").prefetch_related("replicas__deployment")

    @display(description="Free")
    def memory(self, device: Device) -> str:
        return _free(device)

    @display(description="Kept for replicas")
    def reserved(self, device: Device) -> str:
        found = reserved_of(device)
        if not found.n_sharing:
            return filesizeformat(found.own_bytes)
        own, shared = filesizeformat(found.own_bytes), filesizeformat(found.shared_bytes)
        return f"{own}, and {shared} for whoever is awake of the {found.n_sharing} that sleep"

    @display(description="Replicas")
    def serves(self, device: Any) -> str:
        return ", ".join(str(replica) for replica in device.replicas.all()) or "-"


@admin.register(Node)
class NodeAdmin(ReadOnlyAdmin):
    """Machines that run engines."""

    list_display = ("name", "n_cores", "devices_free", "seen")
    search_fields = ("name",)
    ordering = ("name",)
    sortable_by = ("name",)
    fieldsets = ((None, {"fields": (("name", "n_cores", "seen"),)}),)
    inlines = (DeviceInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Node]:
        rows: QuerySet[Node] = super().get_queryset(request)
        return rows.prefetch_related("devices")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("seen",)

    @display(description="Free")
    def devices_free(self, node: Any) -> str:
        return "; ".join(f"{each.uid} {_free(each)}" for each in node.devices.all()) or "-"

    @display(description="Last seen", ordering="seen_at")
    def seen(self, node: Node) -> str:
        return str(naturaltime(node.seen_at))


def _free(device: Device) -> str:
    return f"{filesizeformat(device.free_bytes)} of {filesizeformat(device.total_bytes)}"


@admin.register(QuarantinedRequest)
class QuarantinedRequestAdmin(ReadOnlyAdmin, TenantScoped):
    """Requests that are refused because engines died of them. Lifting lets them run again."""

    list_display = ("request_id", "tenant", "deployment_name", "n_deaths", "since", "state")
    list_filter = ("deployment_name",)
    list_select_related = ("tenant",)
    search_fields = ("request_id", "deployment_name", "tenant__name")
    search_help_text = "A request's id, a deployment, or a tenant's name"
    ordering = ("-id",)
    sortable_by = ()
    actions_detail = ("lift",)
    actions_row = ("lift",)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("request_id", "tenant"),
                    ("deployment_name", "n_deaths"),
                    ("since", "expires_at"),
                    "digest",
                )
            },
        ),
    )

    @action(
        description="Lift",
        permissions=["lift"],
        icon="lock_open",
        variant=ActionVariant.DANGER,
        dialog={
            "title": "Let this request run again?",
            "description": "Engines died of it. What is held against it is forgotten.",
            "form_class": None,
            "form_submit_text": "Lift the quarantine",
        },
    )
    def lift(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        row = get_object_or_404(self.get_queryset(request), pk=object_id)
        quarantine_lift(quarantined=row, actor=actor_of(request))
        messages.success(request, f"Requests such as {row} run again.")
        return dialog_redirect(request, reverse("admin:engines_quarantinedrequest_changelist"))

    def has_lift_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return self._may(request, "change", object_id)

    @display(description="State", label={"Over": "", "Refused": "danger"})
    def state(self, row: QuarantinedRequest) -> str:
        return "Refused" if row.expires_at > timezone.now() else "Over"


def _of_replica(process: Any, name: str) -> str:
    """Return what the replica says whose engine this is; rooms above know of replicas."""
    return str(getattr(getattr(process, "replica", None), name, "")) or "-"


_SHOWN_ELSEWHERE = ("epoch", "pid", "steps", "tiers")


def _table(values: dict[str, Any]) -> SafeString:
    rows = format_html_join(
        "",
        '<tr><td class="pr-6 py-1">{}</td><td class="py-1 font-mono">{}</td></tr>',
        (
            (name.removeprefix("n_").replace("_", " "), _readable(value))
            for name, value in values.items()
            if name not in _SHOWN_ELSEWHERE and value is not None
        ),
    )
    return format_html("<table><tbody>{}</tbody></table>", rows) if values else SafeString("-")


def _readable(value: object) -> str:
    match value:
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.1f}"
        case {"median": median, "worst": worst}:
            return f"{median:,.2f}, {worst:,.2f}"
        case _:
            return str(value)
