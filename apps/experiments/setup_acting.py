"""What the page does on which an experiment is set up: look only, save a draft, save and start."""

from dataclasses import dataclass
from typing import Any, Final

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone

from apps.audit.selectors import actor_of
from apps.core.exceptions import AppError
from apps.experiments.affected import Affected, Planned
from apps.experiments.judged import judge_names_in, judging_warnings
from apps.experiments.models import Experiment
from apps.experiments.second_person import newcomer_of
from apps.experiments.services import (
    experiment_create,
    experiment_start,
    experiment_update,
    start_problems,
)
from apps.experiments.setup_page import Check, Setup, setup_read, variant_added

_LONG_DAYS: Final = 60
# Of the services' names of fields, those that stand above a part of the page.
_PARTS: Final = {"variants": "variants", "metrics": "metrics", "eligibility": "eligibility"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Powers:
    """may_start: on the route that was chosen; asked of the route's page."""

    may_save: bool
    may_start: bool


def setup_view(
    request: HttpRequest,
    site: AdminSite,
    *,
    draft: Experiment | None,
    copied: Experiment | None,
    page: Any,
) -> HttpResponse:
    """page: the admin of experiments, which says who may do what. It has asked whether this person
    may come here at all."""
    setup = setup_read(request, site, draft=draft, copied=copied, now=timezone.now())
    may_start = _may_start(request, setup, page)
    if request.method == "POST":
        act = request.POST.get("act", "")
        if act == "more":
            variant_added(setup, request, site)
        elif act in ("save", "start", "check") and setup.is_valid():
            if act == "start" and not may_start:
                raise PermissionDenied
            if act == "check":
                setup.checks = _checked(request, setup)
            elif (saved := _saved(request, setup, is_start=act == "start")) is not None:
                url = reverse("admin:experiments_experiment_change", args=[saved.pk])
                return HttpResponseRedirect(url)
    context = {
        **site.each_context(request),
        "title": "Set up an experiment" if draft is None else f"Set up {draft}",
        "setup": setup,
        "opts": page.opts,
        "seen": _seen(request, draft),
        "may_start": may_start,
        "may_delete": draft is not None and page.has_delete_permission(request, draft),
        "planned_checks": _planned_checks(setup.affected, setup.planned),
    }
    return TemplateResponse(request, "experiments/setup.html", context)


def _may_start(request: HttpRequest, setup: Setup, page: Any) -> bool:
    """Whether this person may start it on the route that is chosen, or on some route."""
    if not page.has_change_permission(request):
        return False
    route = setup.form.cleaned_data.get("route") if setup.is_bound else None
    return bool(page.may_move_traffic(request, route))


def _seen(request: HttpRequest, draft: Experiment | None) -> int:
    """Return the version of the draft that the person has before them."""
    sent = request.POST.get("seen", "")
    if sent.isascii() and sent.isdecimal() and len(sent) <= 9:
        return int(sent)
    return draft.version if draft is not None else 0


def _saved(request: HttpRequest, setup: Setup, *, is_start: bool) -> Experiment | None:
    """Save, and start where that was pressed, in one transaction; None where a service refused,
    which is then said on the page."""
    try:
        with transaction.atomic():
            experiment = _written(request, setup)
            if is_start:
                experiment = experiment_start(
                    experiment=experiment, seen=experiment.version, actor=actor_of(request)
                )
    except (AppError, ValidationError) as error:
        _refuse(setup, error)
        return None
    verb = "has started" if is_start else "is saved"
    messages.success(request, f"{experiment} {verb}.")
    for warning in _warnings(setup, experiment) if is_start else ():
        messages.warning(request, warning)
    return experiment


def _written(request: HttpRequest, setup: Setup) -> Experiment:
    parts: dict[str, Any] = {
        "variants": setup.variant_specs(),
        "metrics": setup.metric_specs(),
        **setup.fields(),
    }
    actor = actor_of(request)
    if setup.draft is None:
        return experiment_create(actor=actor, **parts)
    return experiment_update(
        experiment=setup.draft, seen=_seen(request, setup.draft), actor=actor, **parts
    )


def _checked(request: HttpRequest, setup: Setup) -> tuple[Check, ...]:
    """Ask the services what they would say, and change nothing: what was written to ask them is
    taken back."""
    problems: dict[str, str] = {}
    warnings: list[str] = []
    with transaction.atomic():
        try:
            with transaction.atomic():
                written = _written(request, setup)
                problems, warnings = start_problems(written), _warnings(setup, written)
        except (AppError, ValidationError) as error:
            _refuse(setup, error)
        transaction.set_rollback(True)
    if problems:
        _refuse(setup, ValidationError(dict(problems)))
    if setup.has_errors:
        return (Check(tone="bad", said="It could not start as it is: see above."),)
    arms = len(setup.variant_specs())
    good = Check(tone="good", said=f"It could start now, with {arms} variants.")
    return (good, *(Check(tone="warn", said=each) for each in warnings))


def _warnings(setup: Setup, experiment: Experiment) -> list[str]:
    names = judge_names_in(each.metric for each in setup.metric_specs())
    found = judging_warnings(experiment, names)
    if (newcomer := newcomer_of(experiment)) is not None:
        found.append(
            f"Two persons are wanted for {newcomer}: save it, and let somebody else start it."
        )
    return found


def _planned_checks(affected: Affected | None, planned: Planned | None) -> tuple[Check, ...]:
    """Say what of the numbers is worth a second thought."""
    found = []
    if affected is None:
        return ()
    if affected.is_unknowable:
        said = "The ledger keeps no conversations: how many there are is not known."
        found.append(Check(tone="warn", said=said))
    elif affected.n_nameless:
        part = 100 * affected.n_nameless / affected.n_requests
        said = f"{part:.0f} % of its requests name nobody of that kind, and would take no part."
        found.append(Check(tone="warn", said=said))
    if planned is not None and planned.days is not None and planned.days > _LONG_DAYS:
        said = "That is long. A greater effect, a larger share or fewer variants take less."
        found.append(Check(tone="warn", said=said))
    return tuple(found)


def _refuse(setup: Setup, error: AppError | ValidationError) -> None:
    """Say on the page why a service refused: at the field or above the part that it names."""
    errors: dict[str, list[str]]
    if isinstance(error, AppError):
        errors = {error.param or "": [error.message]}
    elif hasattr(error, "error_dict"):
        errors = error.message_dict
    else:
        errors = {"": error.messages}
    for name, texts in errors.items():
        if name in _PARTS:
            setup.problems.setdefault(_PARTS[name], []).extend(texts)
            continue
        for text in texts:
            setup.form.add_error(name if name in setup.form.fields else None, text)
