"""The page on which an experiment is set up: what it asks, what it offers, and what can be said of
the answers before anything is changed. Who may come here, ``admin`` has asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from django.contrib.admin import AdminSite
from django.http import HttpRequest, QueryDict

from apps.core.admin import BaseAdmin
from apps.experiments.affected import Affected, Planned, affected_of, planned_of
from apps.experiments.judged import judge_names_in
from apps.experiments.metrics import Metric, metric_of
from apps.experiments.models import Experiment, Layer
from apps.experiments.page_reads import event_names, experiment_name_free
from apps.experiments.selectors import metrics_of, variants_of
from apps.experiments.setup_forms import (
    GUARDRAILS_OFFERED,
    N_GUARDRAILS,
    PRIMARY_OFFERED,
    SECONDARY_OFFERED,
    VARIANTS_OFFERED,
    GuardrailForm,
    SetupForm,
    VariantForm,
    rows_sent,
)
from apps.experiments.types import (
    DEFAULT_LAYER,
    MAX_VARIANTS,
    Eligibility,
    ExperimentFields,
    MetricSpec,
    VariantSpec,
)
from apps.judging.selectors import judge_names

_PLANNED_UNKNOWN: Final = 2_000
_ALPHA, _POWER, _SHARE, _EFFECT = 5.0, 80.0, 100.0, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was found before anything is sent."""

    tone: Literal["good", "warn", "bad"]
    said: str


@dataclass(slots=True, kw_only=True)
class Setup:
    """The forms of the page, and what is said beside them. draft: what is changed; None makes a
    new one. checks, problems (of a part of the page): filled by whoever asks the services."""

    draft: Experiment | None
    form: SetupForm
    variants: list[VariantForm]
    guardrails: list[GuardrailForm]
    affected: Affected | None = None
    planned: Planned | None = None
    checks: tuple[Check, ...] = ()
    problems: dict[str, list[str]] = field(default_factory=dict)

    @property
    def has_errors(self) -> bool:
        return bool(self.problems) or bool(self.form.errors)

    @property
    def is_bound(self) -> bool:
        return self.form.is_bound

    @property
    def may_add(self) -> bool:
        return len(self.variants) < MAX_VARIANTS

    def is_valid(self) -> bool:
        """Every form is asked, so that all that is wrong is shown at once."""
        found = [each.is_valid() for each in (self.form, *self.variants, *self.guardrails)]
        return all(found)

    def fields(self) -> ExperimentFields:
        """Return what the services take; only where all is valid."""
        data = self.form.cleaned_data
        found = ExperimentFields(
            name=data["name"],
            hypothesis=data["hypothesis"],
            route=data["route"],
            share_percent=data["share_percent"],
            subject=data["subject"],
            eligibility=self.form.eligibility,
            alpha=data["alpha"] / 100,
            power=data["power"] / 100,
            min_effect=data["min_effect"] / 100,
            planned_units=self.n_planned,
            pre_period_days=data["pre_period_days"],
        )
        if data["layer"] is not None:
            found["layer"] = data["layer"]
        return found

    @property
    def n_planned(self) -> int:
        """What somebody has typed, or what was computed, or a number to begin with."""
        typed = self.form.cleaned_data.get("planned_units")
        computed = self.planned.n_subjects if self.planned is not None else None
        return int(typed or computed or _PLANNED_UNKNOWN)

    def variant_specs(self) -> list[VariantSpec]:
        """Return the arms; the first is the control."""
        rows = [each.cleaned_data for each in self.variants if not each.is_empty]
        return [
            VariantSpec(
                name=row["name"],
                weight=row["weight"],
                is_control=number == 0,
                deployment=row["deployment"],
                other_route=row["other_route"],
                parameters=row["parameters"],
                prompt_template=row["prompt_template"],
            )
            for number, row in enumerate(rows)
        ]

    def metric_specs(self) -> list[MetricSpec]:
        data = self.form.cleaned_data
        primary = metric_of(data["primary"])
        found = [
            MetricSpec(metric=primary.key, role="primary", better=data["better"] or primary.better)
        ]
        for row in (each.cleaned_data for each in self.guardrails):
            if row.get("metric"):
                guard = metric_of(row["metric"])
                found.append(
                    MetricSpec(
                        metric=guard.key,
                        role="guardrail",
                        better=guard.better,
                        tolerance=row["tolerance"] / 100,
                    )
                )
        found += [
            MetricSpec(metric=key, role="secondary", better=metric_of(key).better)
            for key in data["secondary"]
        ]
        return found


def setup_read(
    request: HttpRequest,
    site: AdminSite,
    *,
    draft: Experiment | None,
    copied: Experiment | None = None,
    now: datetime,
) -> Setup:
    """Return the page as it was sent, or as it is offered: of a draft, of what is copied, or new,
    with whom it would be of."""
    data = request.POST if request.method == "POST" else None
    source = draft or copied
    routes = _seen(request, site, "routing.Route")
    deployments = _seen(request, site, "deployments.Deployment")
    offered = {"events": event_names(), "judges": _judges_offered(source)}
    initial: Mapping[str, Any]
    variants: Sequence[Mapping[str, Any]]
    guardrails: Sequence[Mapping[str, Any]]
    if source is None:
        route = _route_offered(request, routes)
        initial = _offered(route)
        variants, guardrails = VARIANTS_OFFERED, GUARDRAILS_OFFERED
    else:
        initial = _initial(source, is_copy=draft is None)
        variants, guardrails = _variants_initial(source), _guardrails_initial(source)
    setup = Setup(
        draft=draft,
        form=SetupForm(data, initial=initial, routes=routes, layers=Layer.objects.all(), **offered),
        variants=_variant_forms(data, variants, deployments=deployments, routes=routes),
        guardrails=_guardrail_forms(data, guardrails, offered=offered),
    )
    _preview(setup, initial=initial, routes=routes, now=now)
    return setup


def _variant_forms(
    data: QueryDict | None, initial: Sequence[Mapping[str, Any]], *, deployments: Any, routes: Any
) -> list[VariantForm]:
    n_rows = len(initial)
    if data is not None:
        n_rows = max(2, rows_sent(data, "variants", most=MAX_VARIANTS))
    return [
        VariantForm(
            data,
            prefix=f"variant-{number}",
            initial=dict(initial[number]) if number < len(initial) else {},
            deployments=deployments,
            routes=routes,
            use_required_attribute=False,
        )
        for number in range(n_rows)
    ]


def _guardrail_forms(
    data: QueryDict | None,
    initial: Sequence[Mapping[str, Any]],
    *,
    offered: Mapping[str, Sequence[str]],
) -> list[GuardrailForm]:
    n_rows = max(len(initial), N_GUARDRAILS)
    if data is not None:
        n_rows = max(n_rows, rows_sent(data, "guardrails", most=20))
    return [
        GuardrailForm(
            data,
            prefix=f"guardrail-{number}",
            initial=dict(initial[number]) if number < len(initial) else {"tolerance": 20},
            **offered,
            use_required_attribute=False,
        )
        for number in range(n_rows)
    ]


def variant_added(setup: Setup, request: HttpRequest, site: AdminSite) -> None:
    """Put an empty variant below the others, which stay as they were typed."""
    if setup.may_add:
        number = len(setup.variants)
        form = VariantForm(
            prefix=f"variant-{number}",
            initial={"name": "bcdefghijk"[number - 1], "weight": 50},
            deployments=_seen(request, site, "deployments.Deployment"),
            routes=_seen(request, site, "routing.Route"),
            use_required_attribute=False,
        )
        setup.variants.append(form)


def _preview(setup: Setup, *, initial: Mapping[str, Any], routes: Any, now: datetime) -> None:
    """Say of whom it would be and how long it takes, as far as the answers are known."""
    said: Mapping[str, Any]
    if setup.is_bound:
        setup.is_valid()
        said = setup.form.cleaned_data
        route, eligibility = said.get("route"), setup.form.eligibility
        weights = [each.cleaned_data.get("weight") for each in setup.variants if not each.is_empty]
    else:
        said = initial
        route = routes.filter(pk=initial["route"]).first() if initial.get("route") else None
        eligibility = initial.get("eligibility", {})
        weights = [each.initial.get("weight") for each in setup.variants]
    metric = _metric(said.get("primary"))
    if route is None or metric is None:
        return
    setup.affected = affected_of(
        route.name,
        subject=said.get("subject") or Experiment.Subject.END_USER,
        eligibility=Eligibility.read(eligibility),
        now=now,
    )
    setup.planned = planned_of(
        setup.affected,
        metric=metric,
        effect=(said.get("min_effect") or _EFFECT) / 100,
        weights=[each for each in weights if each],
        alpha=(said.get("alpha") or _ALPHA) / 100,
        power=(said.get("power") or _POWER) / 100,
        share_percent=said.get("share_percent") or _SHARE,
        typed=said.get("planned_units") if setup.is_bound else None,
    )


def _metric(key: Any) -> Metric | None:
    try:
        return metric_of(str(key)) if key else None
    except ValueError:
        return None


# -- what is offered ---------------------------------------------------------------------------


def _offered(route: Any) -> dict[str, Any]:
    layer = Layer.objects.filter(name=DEFAULT_LAYER).first() or Layer.objects.first()
    return {
        "route": route.pk if route is not None else None,
        "name": experiment_name_free(route.name if route is not None else "experiment"),
        "layer": layer.pk if layer is not None else None,
        "primary": PRIMARY_OFFERED,
        "secondary": list(SECONDARY_OFFERED),
        "subject": Experiment.Subject.END_USER,
        "min_effect": _EFFECT,
        "alpha": _ALPHA,
        "power": _POWER,
        "share_percent": _SHARE,
    }


def _judges_offered(source: Experiment | None) -> list[str]:
    """Return the judges that are on, and those that a draft names: it stays as it was saved, and
    its start says what is wrong with them."""
    named = judge_names_in(each.metric for each in metrics_of(source)) if source else []
    return sorted({*judge_names(), *named})


def _initial(source: Experiment, *, is_copy: bool) -> dict[str, Any]:
    """Return what an experiment says, as the page has it. A copy gets a name of its own, and its
    number of subjects is computed anew."""
    metrics = metrics_of(source)
    primary = next((each for each in metrics if each.role == "primary"), None)
    said = source.eligibility
    usual = _metric(primary.metric) if primary is not None else None
    is_usual = primary is None or usual is None or usual.better == primary.better
    return {
        "name": experiment_name_free(source.name) if is_copy else source.name,
        "hypothesis": source.hypothesis,
        "route": source.route_id,
        "layer": source.layer_id,
        "subject": source.subject,
        "share_percent": source.share_percent,
        "primary": primary.metric if primary is not None else PRIMARY_OFFERED,
        "better": "" if is_usual or primary is None else primary.better,
        "secondary": [each.metric for each in metrics if each.role == "secondary"],
        "min_effect": _plain(100 * source.min_effect),
        "alpha": _plain(100 * source.alpha),
        "power": _plain(100 * source.power),
        "pre_period_days": source.pre_period_days,
        "eligibility": said,
        "tenants": " ".join(said.get("tenants", ())),
        "doors": list(said.get("doors", ())),
        "end_user_prefixes": " ".join(said.get("end_user_prefixes", ())),
        "api_tokens": " ".join(map(str, said.get("api_tokens", ()))),
    }


def _variants_initial(source: Experiment) -> list[dict[str, Any]]:
    return [
        {
            "name": each.name,
            "weight": each.weight,
            "deployment": each.deployment.pk if each.deployment is not None else None,
            "other_route": each.other_route.pk if each.other_route is not None else None,
            "parameters": " ".join(f"{key}={each.parameters[key]}" for key in each.parameters),
            "prompt_template": each.prompt_template,
        }
        for each in variants_of(source)
    ]


def _guardrails_initial(source: Experiment) -> list[dict[str, Any]]:
    return [
        {"metric": each.metric, "tolerance": _plain(100 * each.tolerance)}
        for each in metrics_of(source)
        if each.role == "guardrail"
    ]


def _plain(value: float) -> float:
    """Return a number without the dust of binary fractions: 5.0, not 5.000000000000001."""
    return float(f"{value:.10g}")


def _route_offered(request: HttpRequest, routes: Any) -> Any:
    """Return the route that the address names, or else the first that is active."""
    key = request.GET.get("route", "")
    if key.isascii() and key.isdecimal() and len(key) <= 18:
        return routes.filter(pk=key).first()
    return routes.filter(is_active=True).first()


def _seen(request: HttpRequest, site: AdminSite, label: str) -> Any:
    """Return the rows of a model that this person sees on its pages."""
    app, name = label.lower().split(".")
    model, page = next(
        (model, page)
        for model, page in site._registry.items()
        if (model._meta.app_label, model._meta.model_name) == (app, name)
    )
    assert isinstance(page, BaseAdmin)
    rows = page.get_queryset(request) if page.has_view_permission(request) else None
    found = rows if rows is not None else model._default_manager.none()
    return found.prefetch_related(None).order_by("name")
