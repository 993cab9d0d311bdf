"""Engine processes as the agent observes them; to look at, never to edit."""

from typing import Any

from django.contrib import admin
from django.contrib.humanize.templatetags.humanize import naturaltime
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from apps.core.admin import ReadOnlyAdmin, display
from apps.engines.models import EngineProcess
from apps.engines.selectors import engine_log_tail
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
            {"fields": (("name", "state_badge"), ("pid", "epoch", "restarts"), "last_error")},
        ),
        (
            "Health",
            {
                "fields": (
                    ("started_at", "ready_at", "last_pong_at"),
                    ("ping", "memory"),
                    ("requests", "blocks"),
                )
            },
        ),
        ("What it serves", {"fields": ("info_table",)}),
        ("Counters of the last pong", {"fields": ("stats_table",)}),
        ("Its latest steps", {"fields": ("steps_table",)}),
        ("Files", {"fields": ("socket_path", "log_path")}),
        ("End of the log", {"fields": ("log",)}),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return (
            *("state_badge", "ping", "memory", "requests", "blocks", "restarts"),
            *("info_table", "stats_table", "steps_table", "log"),
        )

    @display(description="State", label=STATE_LABELS, ordering="state")
    def state_badge(self, process: EngineProcess) -> str:
        return process.get_state_display()

    @display(description="Running / waiting")
    def requests(self, process: EngineProcess) -> str:
        stats = process.stats
        return f"{stats['n_running']} / {stats['n_waiting']}" if stats else "-"

    @display(description="KV blocks free")
    def blocks(self, process: EngineProcess) -> str:
        stats = process.stats
        return f"{stats['n_blocks_free']:,} of {stats['n_blocks_total']:,}" if stats else "-"

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

    @display(description="Last 200 lines")
    def log(self, process: EngineProcess) -> SafeString:
        lines = engine_log_tail(process)
        return format_html(
            '<pre class="max-h-96 overflow-auto text-xs whitespace-pre-wrap">{}</pre>',
            "\n".join(lines) or "Nothing yet.",
        )


_SHOWN_ELSEWHERE = ("epoch", "pid", "steps")


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
