"""The one page on which a rollout is set up: what moves, in which steps, what guards it; with who
will feel it, and with the service's own checks before anything is changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone

from apps.audit.selectors import actor_of
from apps.core.access import access_in
from apps.core.exceptions import AppError
from apps.deployments.selectors import live_state
from apps.rbac.selectors import person_of
from apps.rollouts.affected import (
    Affected,
    StepForecast,
    affected_of,
    steps_forecast,
    together_said,
)
from apps.rollouts.forms import (
    MAX_STEPS,
    PRESETS,
    StartForm,
    StepForm,
    guardrails_initial,
    step_forms,
    steps_initial,
    steps_typed,
)
from apps.rollouts.pages import page_of
from apps.rollouts.selectors import Asked, rollout_check
from apps.rollouts.services import rollout_start
from apps.rollouts.types import DEFAULT_STEPS
from apps.routing.selectors import targets_of
from apps.routing.types import TargetSpec

if TYPE_CHECKING:
    from apps.rollouts.models import Rollout

ADD: Final = "rollouts.add_rollout"
_SEE_REQUESTS: Final = "metering.view_usagerecord"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was found before anything is changed."""

    tone: Literal["good", "warn", "bad"]
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The form, with what is known of what is in it. affected: where this person may see requests,
    and both the route and the new deployment were chosen."""

    form: StartForm
    steps: Sequence[StepForm]
    step_errors: Sequence[str] = ()
    checks: Sequence[Check] = ()
    affected: Affected | None = None
    forecasts: Sequence[StepForecast] = ()

    @property
    def together(self) -> str:
        return together_said(self.forecasts) if self.forecasts else ""


def start_page(request: HttpRequest, *, site: AdminSite) -> HttpResponse:
    """``?route=`` and ``?candidate=`` say with what it begins."""
    if not access_in(request).may(ADD):
        raise PermissionDenied
    if request.method != "POST":
        offer = _offered(request, site)
    elif "preset" in request.POST or "add" in request.POST:
        offer = _offered_anew(request, site)
    else:
        answer = _sent(request, site)
        if isinstance(answer, HttpResponse):
            return answer
        offer = answer
    context = {
        **site.each_context(request),
        "title": "Start a rollout",
        "offer": offer,
        "presets": [(key, said) for key, (said, _) in PRESETS.items()],
    }
    return TemplateResponse(request, "rollouts/start.html", context)


# -- what is offered -------------------------------------------------------------------------------


def _offered(request: HttpRequest, site: AdminSite) -> Offer:
    route = _row(request, site, "routing.Route", request.GET.get("route"))
    candidate = _row(request, site, "deployments.Deployment", request.GET.get("candidate"))
    if route is not None and candidate is None:
        candidate = _newest_for(request, site, route)
    initial = {"route": route and route.pk, "candidate": candidate and candidate.pk}
    task = "generate" if candidate is None else candidate.task
    form = _form(request, site, initial={**initial, **guardrails_initial(task)})
    offer = Offer(form=form, steps=step_forms(None, steps_initial(DEFAULT_STEPS)))
    if route is None or candidate is None:
        return offer
    return _with_facts(request, offer, Asked(route=route, candidate=candidate))


def _offered_anew(request: HttpRequest, site: AdminSite) -> Offer:
    """With other steps, or one more, and all else as it was typed."""
    data = request.POST
    typed = {name: data.get(name, "") for name in _form(request, site).fields}
    preset = PRESETS.get(data.get("preset", ""))
    if preset is not None:
        steps = steps_initial(preset[1])
    else:
        steps = [*steps_typed(data), {}][:MAX_STEPS]
    return Offer(form=_form(request, site, initial=typed), steps=step_forms(None, steps))


def _newest_for(request: HttpRequest, site: AdminSite, route: Any) -> Any:
    """Return the newest deployment of a model that the route leads to, which it does not yet."""
    targets = [each.deployment for each in targets_of(route)]
    versions = [each.model_version_id for each in targets if each.model_version_id]
    rows = _deployments(request, site).exclude(pk__in=[each.pk for each in targets])
    of_model = rows.filter(model_version__model__versions__in=versions)
    return of_model.order_by("-pk").first()


# -- what was sent ---------------------------------------------------------------------------------


def _sent(request: HttpRequest, site: AdminSite) -> Offer | HttpResponse:
    """Start it; with “Check” only look whether it could."""
    offer = Offer(form=_form(request, site, data=request.POST), steps=step_forms(request.POST))
    are_steps = all(each.is_valid() for each in offer.steps)
    if not (offer.form.is_valid() and are_steps):
        return offer
    asked = _asked(offer)
    if not page_of(site, "routing.Route").has_change_permission(request, asked.route):
        raise PermissionDenied
    if "check" in request.POST:
        checked = rollout_check(asked)
        offer = _refused(offer, checked.problems)
    else:
        try:
            rollout = _started(request, asked)
        except (AppError, ValidationError) as error:
            offer = _refused(offer, _problems_of(error))
        else:
            messages.success(request, f"The rollout has begun: {rollout}.")
            location = reverse("admin:rollouts_rollout_change", args=[rollout.pk])
            return HttpResponseRedirect(location)
    return _with_facts(request, offer, asked, is_sent=True)


def _asked(offer: Offer) -> Asked:
    given = offer.form.cleaned_data
    return Asked(
        route=given["route"],
        candidate=given["candidate"],
        baseline=given["baseline"],
        steps=tuple(spec for each in offer.steps if (spec := each.spec) is not None),
        guardrails=offer.form.guardrails,
        approval=given["approval"],
        needs_second_person=given["needs_second_person"],
        alpha=(given["alpha"] or 5.0) / 100,
    )


def _started(request: HttpRequest, asked: Asked) -> "Rollout":
    return rollout_start(
        route=asked.route,
        candidate=asked.candidate,
        baseline=asked.baseline,
        steps=asked.steps,
        guardrails=asked.guardrails,
        approval=asked.approval,
        needs_second_person=asked.needs_second_person,
        alpha=asked.alpha,
        actor=actor_of(request),
        by=person_of(request),
    )


def _problems_of(error: AppError | ValidationError) -> Mapping[str, list[str]]:
    if isinstance(error, AppError):
        return {error.param or "": [error.message]}
    if hasattr(error, "error_dict"):
        return dict(error.message_dict)
    return {"": error.messages}


def _refused(offer: Offer, problems: Mapping[str, list[str]]) -> Offer:
    """Return it with why it cannot start: at the fields that are named."""
    for name, texts in problems.items():
        for text in texts if name != "steps" else ():
            offer.form.add_error(name if name in offer.form.fields else None, text)
    return replace(offer, step_errors=problems.get("steps", ()))


# -- what is known ---------------------------------------------------------------------------------


def _with_facts(
    request: HttpRequest, offer: Offer, asked: Asked, *, is_sent: bool = False
) -> Offer:
    """Return it with what is found of what is asked, and who would feel it. is_sent: what forbids
    it stands at the fields already."""
    checked, targets = rollout_check(asked), targets_of(asked.route)
    checks = [_leads_to(asked.route, targets), _candidate_check(asked.candidate)]
    if not is_sent:
        checks += [
            Check(tone="bad", said=text) for texts in checked.problems.values() for text in texts
        ]
    checks += [Check(tone="warn", said=text) for text in checked.warnings]
    if checked.needs_second_person:
        said = "Whoever starts it cannot approve it: it waits for somebody else at once."
        checks.append(Check(tone="warn", said=said))
    if checked.percents:
        shares = ", ".join(f"{each:.3g} %" for each in checked.percents)
        said = f"It may start: {shares} of what {checked.baseline_name} gets now."
        checks.append(Check(tone="good", said=said))
    access = access_in(request)
    if not access.may_somewhere(_SEE_REQUESTS):
        return replace(offer, checks=checks)
    within = access.tenants_where(_SEE_REQUESTS)
    affected = affected_of(asked.route.name, within=within, now=timezone.now())
    share = _share(targets, checked.baseline_name)
    forecasts = steps_forecast(asked.steps, per_hour=affected.per_hour, share=share)
    return replace(offer, checks=checks, affected=affected, forecasts=forecasts)


def _leads_to(route: Any, targets: Sequence[TargetSpec]) -> Check:
    weights = sum(each.weight for each in targets)
    shares = [
        f"{each.deployment} {100 * each.weight / weights:.3g} %" for each in targets if each.weight
    ]
    return Check(tone="good", said=f"{route} leads to {', '.join(shares) or 'nothing'}.")


def _candidate_check(candidate: Any) -> Check:
    live = live_state(candidate)
    said = f"{candidate} is {live.word.lower()}: {live.n_ready} of {live.n_replicas} replicas."
    return Check(tone="good" if live.n_ready else "bad", said=said)


def _share(targets: Sequence[TargetSpec], baseline_name: str) -> float:
    """Return what part of the route's requests the baseline has; all, where it is not known."""
    weights = {each.deployment.name: each.weight for each in targets}
    together = sum(weights.values())
    return weights[baseline_name] / together if baseline_name in weights and together else 1.0


# -- rows ------------------------------------------------------------------------------------------


def _form(request: HttpRequest, site: AdminSite, **given: Any) -> StartForm:
    return StartForm(
        routes=_routes(request, site), deployments=_deployments(request, site), **given
    )


def _routes(request: HttpRequest, site: AdminSite) -> Any:
    return page_of(site, "routing.Route").get_queryset(request).order_by("name")


def _deployments(request: HttpRequest, site: AdminSite) -> Any:
    page = page_of(site, "deployments.Deployment")
    if not page.has_view_permission(request):
        return page.model.objects.none()
    rows = page.get_queryset(request).prefetch_related("replicas__engine_process")
    return rows.order_by("name")


def _row(request: HttpRequest, site: AdminSite, label: str, key: str | None) -> Any:
    """Return the row of that key that this person sees; None where there is none."""
    page = page_of(site, label)
    if not key or not page.has_view_permission(request):
        return None
    return page.get_object(request, key)
