"""What the buttons of a guide do: each is one service, for who may call it on the admin's pages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from apps.audit.selectors import actor_of
from apps.console.guide.asking import Asked, deploy_asked, import_asked, refuse, route_asked
from apps.console.guide.subject import Subject, page_of
from apps.core.access import access_in
from apps.core.admin import refused
from apps.core.exceptions import AppError
from apps.deployments.services import deployment_drain, deployment_start
from apps.registry.services import model_version_stage_move, verification_ask
from apps.registry.types import Stage
from apps.routing.services import route_create, route_update
from apps.routing.types import TargetSpec, all_to

if TYPE_CHECKING:
    from apps.deployments.models import Deployment

APPROVE: Final = "registry.approve_modelversion"
VERIFY: Final = "registry.add_verificationrun"
CHECK: Final = "check"  # the button that sends a form to be looked at only

# A page to go to, or a step's form with what is wrong with it.
Answer = HttpResponse | Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Powers:
    """What somebody may do, by the names of what they press."""

    may_import: bool
    may_verify: bool
    may_approve: bool
    may_deploy: bool
    may_run: bool
    may_route: bool


def powers_of(request: HttpRequest, site: AdminSite, subject: Subject) -> Powers:
    access = access_in(request)
    routes, deployments = (
        page_of(site, label) for label in ("routing.Route", "deployments.Deployment")
    )
    return Powers(
        may_import=page_of(site, "registry.ImportJob").has_add_permission(request),
        may_verify=access.may(VERIFY),
        may_approve=access.may(APPROVE),
        may_deploy=deployments.has_add_permission(request),
        may_run=deployments.has_change_permission(request),
        may_route=(
            routes.has_add_permission(request)
            if subject.route is None
            else routes.has_change_permission(request, subject.route)
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What somebody pressed, where."""

    request: HttpRequest
    site: AdminSite
    subject: Subject
    powers: Powers

    @property
    def is_check(self) -> bool:
        return CHECK in self.request.POST

    def to(self, **changed: Any) -> HttpResponseRedirect:
        return HttpResponseRedirect(guide_url(self.subject.query(**changed)))

    def refused(self, error: AppError | ValidationError) -> HttpResponseRedirect:
        return refused(self.request, error, location=guide_url(self.subject.query()))


def guide_url(query: str) -> str:
    return f"{reverse('admin:guide')}?{query}" if query else reverse("admin:guide")


def acted(act: Act) -> tuple[str, Answer]:
    """Do what was pressed; return its step and the answer.

    Raises:
        PermissionDenied: they may not.
        Http404: there is nothing to do it to.
    """
    name = act.request.POST.get("step", "")
    if name not in _ACTS:
        raise Http404
    return name, _ACTS[name](act)


def _import(act: Act) -> Answer:
    _require(act.powers.may_import)
    asked = import_asked(act.request, act.site, act.subject, data=act.request.POST)
    if act.is_check or not asked.form.is_valid():
        return asked
    page = page_of(act.site, "registry.ImportJob")
    try:
        obj = asked.form.save(commit=False)
        job = page.service_save(act.request, obj, form=asked.form, change=False)
    except (AppError, ValidationError) as error:
        refuse(asked.form, error)
        return asked
    return HttpResponseRedirect(guide_url(f"import={job.pk}"))


def _verify(act: Act) -> Answer:
    _require(act.powers.may_verify)
    version = _present(act.subject.version)
    try:
        verification_ask(version=version, actor=actor_of(act.request))
    except AppError as error:
        return act.refused(error)
    return act.to()


def _approve(act: Act) -> Answer:
    _require(act.powers.may_approve)
    try:
        model_version_stage_move(
            version=_present(act.subject.version),
            stage=Stage.APPROVED,
            by=access_in(act.request),
            actor=actor_of(act.request),
        )
    except AppError as error:
        return act.refused(error)
    return act.to()


def _deploy(act: Act) -> Answer:
    _require(act.powers.may_deploy)
    _present(act.subject.version)
    asked = deploy_asked(act.request, act.site, act.subject, data=act.request.POST)
    if act.is_check or not asked.form.is_valid():
        return asked
    page = page_of(act.site, "deployments.Deployment")
    try:
        obj = asked.form.save(commit=False)
        made = page.service_save(act.request, obj, form=asked.form, change=False)
    except (AppError, ValidationError) as error:
        refuse(asked.form, error)
        return asked
    return act.to(deployment=made.pk, route=None)


def _route(act: Act) -> Answer:
    _require(act.powers.may_route)
    subject = act.subject
    deployment = _present(subject.deployment)
    asked = route_asked(act.request, act.site, subject, data=act.request.POST)
    form = asked.form or asked.formset
    if act.is_check or not form.is_valid():
        return asked
    actor = actor_of(act.request)
    try:
        if subject.route is not None:
            route = route_update(route=subject.route, actor=actor, targets=asked.formset.specs)
        else:
            name = asked.form.cleaned_data["name"]
            route = route_create(actor=actor, targets=all_to(deployment), name=name)
    except (AppError, ValidationError) as error:
        if asked.form is None:
            return act.refused(error)
        refuse(asked.form, error)
        return asked
    return act.to(route=route.pk)


def _drain(act: Act) -> Answer:
    """Take its weight away: it gets no new requests, and ends those that it has."""
    _require(act.powers.may_route)
    route, deployment = _present(act.subject.route), _target_named(act)
    targets = [
        TargetSpec(deployment=each.deployment) if each.deployment.pk == deployment.pk else each
        for each in act.subject.targets
    ]
    try:
        route_update(route=route, actor=actor_of(act.request), targets=targets)
    except ValidationError as error:
        return act.refused(error)
    messages.success(
        act.request, f"{deployment} gets no new requests, and finishes those that it has."
    )
    return act.to()


def _stop(act: Act) -> Answer:
    deployment = _target_named(act)
    _require(_may_run(act, deployment))
    deployment_drain(deployment=deployment, actor=actor_of(act.request))
    messages.success(act.request, f"{deployment} finishes what it has, then stops.")
    return act.to()


def _start(act: Act) -> Answer:
    deployment = _present(act.subject.deployment)
    _require(_may_run(act, deployment))
    try:
        deployment_start(deployment=deployment, actor=actor_of(act.request))
    except (AppError, ValidationError) as error:
        return act.refused(error)
    return act.to()


_ACTS: Final[Mapping[str, Callable[[Act], Answer]]] = {
    "import": _import,
    "verify": _verify,
    "approve": _approve,
    "deploy": _deploy,
    "route": _route,
    "drain": _drain,
    "stop": _stop,
    "start": _start,
}


def _may_run(act: Act, deployment: "Deployment") -> bool:
    page = page_of(act.site, "deployments.Deployment")
    return bool(page.has_change_permission(act.request, deployment))


def _target_named(act: Act) -> "Deployment":
    """Return the deployment of the route that the button was beside."""
    key = act.request.POST.get("deployment")
    found = (each.deployment for each in act.subject.targets if str(each.deployment.pk) == key)
    deployment: Deployment = _present(next(found, None))
    return deployment


def _present(row: Any) -> Any:
    if row is None:
        raise Http404
    return row


def _require(is_allowed: bool) -> None:
    if not is_allowed:
        raise PermissionDenied
