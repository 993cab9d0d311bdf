"""Judges: what each is told, whom it asks and who pays, and how far it is."""

from typing import Any, Final

from django import forms
from django.contrib import admin
from django.db import models
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone
from django.utils.text import Truncator

from apps.audit.selectors import actor_of
from apps.core.access import access_in
from apps.core.admin import ServiceModelAdmin, display
from apps.core.tenancy import every_tenant
from apps.judging.models import Judge
from apps.judging.selectors import samples_waiting
from apps.judging.services import FIXED, judge_create, judge_delete, judge_update
from apps.judging.types import JudgeFields
from apps.rbac.selectors import person_of
from apps.rbac.types import ADD_TOKEN
from apps.routing.selectors import routes_visible_to

_SEE_TOKENS: Final = "rbac.view_apitoken"
_COUNTS: Final = ("n_taken", "n_scored", "n_failed", "waiting", "problem")
_STATE_LABELS: Final = {"On": "success", "Off": "warning", "No token": "danger"}
_RUBRIC_SHOWN: Final = 70
_PROBLEM_SHOWN: Final = 60


class JudgeForm(forms.ModelForm):  # type: ignore[type-arg]  # not generic at run time
    def clean(self) -> dict[str, Any]:
        """Say at the field what the table's own constraint would say of none."""
        data = super().clean() or {}
        lowest, highest = data.get("lowest"), data.get("highest")
        if lowest is not None and highest is not None and lowest >= highest:
            self.add_error("highest", "It must be above the lowest score.")
        return data


@admin.register(Judge)
class JudgeAdmin(ServiceModelAdmin):
    """Once an answer was taken for a judge, what its scores are made by is shown and stays."""

    form = JudgeForm
    list_display = (
        "name", "state", "route", "rubric_begin", "scale", "n_taken", "n_scored", "n_failed",
        "waiting", "problem_begin",
    )  # fmt: skip
    list_filter = ("is_on",)
    list_select_related = ("route",)
    search_fields = ("name", "rubric", "route__name")
    search_help_text = "A name, words of the rubric, or a route"
    ordering = ("name",)
    sortable_by = ("name",)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Judge]:
        rows: models.QuerySet[Judge] = super().get_queryset(request)
        return rows.select_related("route")

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """With how many wait for each that is listed, in one query."""
        response = super().changelist_view(request, extra_context)
        changes = getattr(response, "context_data", {}).get("cl")
        if changes is not None:
            waiting = samples_waiting([row.pk for row in changes.result_list])
            for row in changes.result_list:
                row.n_waiting = waiting.get(row.pk, 0)
        return response

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        token = "api_token" if _may_lend(request, obj) else "asks_as"
        found = [
            (None, {"fields": (("name", "is_on"),)}),
            ("What it is told", {"fields": ("rubric", ("lowest", "highest"))}),
            ("Whom it asks", {"fields": ("route", token)}),
            ("How much", {"fields": (("sample_percent", "per_day"),)}),
        ]
        if obj is not None:
            counts = (("n_taken", "n_scored"), ("n_failed", "waiting"), "problem")
            found.append(("So far", {"fields": counts}))
        return found

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fixed = sorted(FIXED) if obj is not None and obj.n_taken else ()
        return (*_COUNTS, "asks_as", *fixed)

    def get_autocomplete_fields(self, request: HttpRequest) -> Any:
        """Choosing among all tokens is for those who may see them."""
        sees = access_in(request).may_somewhere(_SEE_TOKENS)
        return ("route", "api_token") if sees else ("route",)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Offer, and take, routes that this person sees and tokens of tenants for which they may
        issue some; and what is chosen now."""
        rows = db_field.remote_field.model._default_manager
        key = request.resolver_match.kwargs.get("object_id") if request.resolver_match else None
        chosen = self.get_object(request, key) if key else None
        if db_field.name == "route":
            visible = routes_visible_to(person_of(request))
            if visible is not None:
                mine = {*visible, *([chosen.route_id] if chosen is not None else ())}
                kwargs["queryset"] = rows.filter(pk__in=mine)
        if db_field.name == "api_token":
            within = access_in(request).tenants_where(ADD_TOKEN)
            live = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
            kept = Q(pk=chosen.api_token_id) if chosen is not None else Q(pk=None)
            kwargs["queryset"] = rows.of_tenants(within).filter(live & Q(revoked_at=None) | kept)
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        fields = JudgeFields(
            name=obj.name,
            rubric=obj.rubric,
            lowest=obj.lowest,
            highest=obj.highest,
            route=obj.route,
            sample_percent=obj.sample_percent,
            per_day=obj.per_day,
            is_on=obj.is_on,
        )
        if "api_token" in form.cleaned_data:
            fields["api_token"] = form.cleaned_data["api_token"]
        actor, person = actor_of(request), person_of(request)
        if change:
            return judge_update(judge=obj, seen=obj.version, actor=actor, by=person, **fields)
        return judge_create(actor=actor, by=person, **fields)

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        judge_delete(judge=obj, seen=obj.version, actor=actor_of(request))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """The answers that wait go with a judge; they are counted, and nobody sees them."""
        rows = list(objs)
        waiting = samples_waiting([row.pk for row in rows])
        listed = [f"{row}, and {waiting.get(row.pk, 0):,} answers that wait for it" for row in rows]
        return listed, {"judges": len(listed)}, set(), []

    @display(description="State", label=_STATE_LABELS)
    def state(self, judge: Judge) -> str:
        if not judge.is_on:
            return "Off"
        return "On" if judge.api_token_id is not None else "No token"

    @display(description="Rubric")
    def rubric_begin(self, judge: Judge) -> str:
        return str(Truncator(" ".join(judge.rubric.split())).chars(_RUBRIC_SHOWN))

    @display(description="Scale")
    def scale(self, judge: Judge) -> str:
        return f"{judge.lowest}-{judge.highest}"

    @display(description="Waiting")
    def waiting(self, judge: Any) -> int:
        if not hasattr(judge, "n_waiting"):
            judge.n_waiting = samples_waiting([judge.pk]).get(judge.pk, 0)
        return int(judge.n_waiting)

    @display(description="Last problem")
    def problem(self, judge: Judge) -> str:
        return judge.last_problem or "-"

    @display(description="Last problem")
    def problem_begin(self, judge: Judge) -> str:
        return str(Truncator(judge.last_problem).chars(_PROBLEM_SHOWN)) or "-"

    @display(description="API token")
    def asks_as(self, judge: Judge) -> str:
        """For those who may not choose one: whose it is they need not see."""
        return "Set" if judge.api_token_id is not None else "None"


def _may_lend(request: HttpRequest, judge: Judge | None) -> bool:
    """Whether this person may choose a token, in place of the one that is chosen now."""
    access = access_in(request)
    if judge is None or judge.api_token_id is None or access.may(ADD_TOKEN):
        return access.may_somewhere(ADD_TOKEN)
    with every_tenant("whether they may choose another is asked of its tenant"):
        lent = judge.api_token
    return lent is not None and access.may(ADD_TOKEN, tenant_id=lent.tenant_id)
