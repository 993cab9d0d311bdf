"""The page of an experiment that runs or ran: what came of it, live, and what ends it."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from apps.audit.selectors import actor_of
from apps.core.access import access_in
from apps.core.admin import refused
from apps.core.exceptions import AppError
from apps.experiments.models import Experiment, Variant
from apps.experiments.plots import percent
from apps.experiments.results_file import results_csv
from apps.experiments.results_shown import STATE_TONES, results_shown, variant_sets
from apps.experiments.selectors import experiments_news, variants_of
from apps.experiments.services import (
    experiment_promote,
    experiment_start,
    experiment_stop,
    variant_weights_set,
)
from apps.experiments.summary import experiment_results
from apps.rbac.selectors import person_of

_WEIGHT: Final = "weight-"
_ROLL_OUT: Final = "rollouts.add_rollout"


def results_view(
    request: HttpRequest, site: AdminSite, *, experiment: Experiment, page: Any
) -> HttpResponse:
    """page: the admin of experiments, which says who may do what."""
    if request.method == "POST":
        return _acted(request, experiment, page=page)
    results = experiment_results(experiment)
    specs = variants_of(experiment)
    news = next(iter(experiments_news([experiment.pk])), None)
    shown = results_shown(
        results,
        sets={each.name: variant_sets(each) for each in specs},
        chosen=request.GET.get("metric", ""),
    )
    may_change = page.has_change_permission(request, experiment)
    may_move = may_change and page.may_move_traffic(request, experiment.route)
    context = {
        "experiment": experiment,
        "may_promote": may_move and access_in(request).may(_ROLL_OUT),
        "shown": shown,
        "news": news,
        "tone": STATE_TONES[experiment.state],
        "wanted": percent(results.power.min_effect),
        "here": _here(request, shown.chosen.key if shown.chosen is not None else ""),
    }
    if request.GET.get("part") == "live":
        response = TemplateResponse(request, "experiments/results_live.html", context)
        response["Cache-Control"] = "no-store"
        return response
    context |= {
        **site.each_context(request),
        "title": str(experiment),
        "opts": page.opts,
        "specs": specs,
        "may_stop": may_change,
        "may_move": may_move,
        "may_add": page.has_add_permission(request),
    }
    return TemplateResponse(request, "experiments/results.html", context)


def results_file_view(request: HttpRequest, *, experiment: Experiment) -> HttpResponse:
    """The numbers of the page, as the management API gives them."""
    file = results_csv(experiment_results(experiment))
    response = HttpResponse(file, content_type="text/csv; charset=utf-8")
    name = f"experiment-{experiment.name}.csv"
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def _acted(request: HttpRequest, experiment: Experiment, *, page: Any) -> HttpResponse:
    """Do what was pressed, and come back; what a service refuses is said there."""
    name = request.POST.get("act", "")
    if name not in _ACTS:
        raise Http404
    location = reverse("admin:experiments_experiment_change", args=[experiment.pk])
    if not page.has_change_permission(request, experiment):
        raise PermissionDenied
    if name != "stop" and not page.may_move_traffic(request, experiment.route):
        raise PermissionDenied
    if name == "promote" and not access_in(request).may(_ROLL_OUT):
        raise PermissionDenied
    try:
        said = _ACTS[name](request, experiment)
    except (AppError, ValidationError) as error:
        return refused(request, error, location=location)
    messages.success(request, said)
    return HttpResponseRedirect(location)


def _stop(request: HttpRequest, experiment: Experiment) -> str:
    experiment_stop(
        experiment=experiment,
        seen=_seen(request),
        actor=actor_of(request),
        because=request.POST.get("because", ""),
        winner=_variant(experiment, request.POST.get("winner", "")),
    )
    return f"{experiment} has stopped: everybody is back on the route."


def _start(request: HttpRequest, experiment: Experiment) -> str:
    experiment_start(experiment=experiment, seen=_seen(request), actor=actor_of(request))
    return f"{experiment} has started."


def _weights(request: HttpRequest, experiment: Experiment) -> str:
    weights: dict[str, int] = {}
    for each in variants_of(experiment):
        text = request.POST.get(f"{_WEIGHT}{each.name}", "")
        if not (text.isascii() and text.isdecimal() and len(text) <= 4 and int(text)):
            raise ValidationError(f"The weight of {each.name} must be a whole number, 1 to 1,000.")
        weights[each.name] = int(text)
    variant_weights_set(
        experiment=experiment, seen=_seen(request), actor=actor_of(request), weights=weights
    )
    return "The weights are set: only the subjects move that must."


def _promote(request: HttpRequest, experiment: Experiment) -> str:
    name = request.POST.get("variant", "")
    variant = _variant(experiment, name)
    if variant is None:
        raise ValidationError("Say which variant.")
    promotion = experiment_promote(
        experiment=experiment,
        variant=variant,
        seen=_seen(request),
        actor=actor_of(request),
        by=person_of(request),
    )
    if promotion.rollout is None:
        return f"{variant} is what {experiment.route} does now, by its defaults."
    return f"{variant} won: its rollout has begun."


_ACTS: Final[Mapping[str, Callable[[HttpRequest, Experiment], str]]] = {
    "stop": _stop,
    "start": _start,
    "weights": _weights,
    "promote": _promote,
}


def _variant(experiment: Experiment, name: str) -> Variant | None:
    return Variant.objects.filter(experiment=experiment, name=name).first()


def _seen(request: HttpRequest) -> int:
    """Return the version that the person had before them; none that there is, of nonsense."""
    text = request.POST.get("seen", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else 0


def _here(request: HttpRequest, metric: str) -> str:
    """Return the address of the live part of the page as it is shown."""
    query = request.GET.copy()
    query["part"] = "live"
    query["metric"] = metric
    return f"?{query.urlencode()}"
