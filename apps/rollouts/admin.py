"""Rollouts: the list of them, the page that starts one, and the page of each."""

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_http_methods, require_safe

from apps.core.access import access_in
from apps.core.admin import ReadOnlyAdmin, display
from apps.rbac.selectors import person_of
from apps.rollouts.models import Rollout
from apps.rollouts.report_page import report_act, report_page
from apps.rollouts.selectors import STATE_TONES, rollouts_visible_to
from apps.rollouts.start_page import ADD, start_page

# In which none of the requests are the new deployment's.
_NOTHING = (Rollout.State.PENDING, Rollout.State.ROLLED_BACK, Rollout.State.ABORTED)


@admin.register(Rollout)
class RolloutAdmin(ReadOnlyAdmin):
    list_display = ("route_column", "moves", "state_badge", "share", "short_reason", "who", "when")
    list_display_links = ("route_column",)
    list_filter = ("state",)
    search_fields = ("route_name", "baseline_name", "candidate_name")
    search_help_text = "A route or a deployment"
    ordering = ("-id",)
    sortable_by = ()

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Rollout]:
        """Those of the routes that this person sees."""
        return rollouts_visible_to(person_of(request)).order_by(*self.ordering)

    def get_urls(self) -> list[Any]:
        act = path(
            "<path:object_id>/act/",
            self.admin_site.admin_view(self.act_view),
            name="rollouts_rollout_act",
        )
        return [act, *super().get_urls()]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return access_in(request).may(ADD)

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        view = require_http_methods(["GET", "HEAD", "POST"])(start_page)
        return view(request, site=self.admin_site)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        rollout = self._seen(request, object_id)
        view = require_safe(report_page)
        return view(request, rollout=rollout, site=self.admin_site)

    def act_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        rollout = self._seen(request, object_id)
        return report_act(request, rollout=rollout, site=self.admin_site)

    def _seen(self, request: HttpRequest, object_id: str) -> Rollout:
        """Return a rollout that this person may see.

        Raises:
            Http404: there is none of that key.
            PermissionDenied: they may see none.
        """
        if not self.has_view_permission(request):
            raise PermissionDenied
        rollout: Rollout | None = self.get_object(request, object_id)
        if rollout is None:
            raise Http404
        return rollout

    @display(description="Route")
    def route_column(self, rollout: Rollout) -> str:
        return rollout.route_name

    @display(description="From, to")
    def moves(self, rollout: Rollout) -> str:
        return f"{rollout.baseline_name} → {rollout.candidate_name}"

    @display(description="State")
    def state_badge(self, rollout: Rollout) -> SafeString:
        return format_html(
            '<span class="co-badge" data-tone="{}">{}</span>',
            STATE_TONES[rollout.state],
            rollout.get_state_display(),
        )

    @display(description="To the new one")
    def share(self, rollout: Rollout) -> str:
        if rollout.state in _NOTHING:
            return "0 %"
        return f"{rollout.steps[rollout.step]['percent']:g} %"

    @display(description="Why")
    def short_reason(self, rollout: Rollout) -> str:
        text = rollout.reason
        return text if len(text) <= 90 else f"{text[:89]}…"

    @display(description="Started by")
    def who(self, rollout: Rollout) -> str:
        return rollout.started_by_name or "—"

    @display(description="Since", ordering="id")
    def when(self, rollout: Rollout) -> Any:
        return rollout.created_at
