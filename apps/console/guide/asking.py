"""What the steps ask: the forms of the admin's own pages, with what would probably be answered, and
what can be said of an answer before it is sent."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from django.contrib.admin import AdminSite
from django.core.exceptions import ValidationError
from django.http import HttpRequest, QueryDict
from django.utils import timezone
from django.utils.text import slugify

from apps.console.guide.subject import Subject, page_of
from apps.console.guide.weights import SHARES, WHOLE, shares_said, weights_proposed
from apps.core.exceptions import AppError
from apps.deployments.selectors import deployment_name_free
from apps.deployments.services import fit_of, kv_cache_proposed
from apps.registry.selectors import model_version_latest, sources_below_roots, stage_refusal
from apps.registry.types import Stage

DEPLOY_FIELDS: Final = (
    "name", "device_class", "quantization", "kv_cache_tokens", "dtype", "min_replicas",
    "max_replicas",
)  # fmt: skip
_NAME_CHARS: Final = 52


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was found before anything is sent."""

    tone: Literal["good", "warn", "bad"]
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A deployment that a route leads to, or would, and the form of its weight."""

    name: str
    form: Any
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A step's form, or, of a route that there is, the rows of its weights and the set of forms
    that they are."""

    form: Any = None
    formset: Any = None
    rows: tuple[Row, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def is_filled(self) -> bool:
        """Whether somebody has sent it already."""
        return any(each is not None and each.is_bound for each in (self.form, self.formset))


def refuse(form: Any, error: AppError | ValidationError) -> None:
    """Show on a form why a service refused it: at its field where it has that."""
    errors: dict[str, list[str]]
    if isinstance(error, AppError):
        errors = {error.param or "": [error.message]}
    elif hasattr(error, "error_dict"):
        errors = error.message_dict
    else:
        errors = {"": error.messages}
    for name, texts in errors.items():
        for text in texts:
            form.add_error(name if name in form.fields else None, text)


# -- import ------------------------------------------------------------------------------------


def import_asked(
    request: HttpRequest, site: AdminSite, subject: Subject, *, data: QueryDict | None = None
) -> Asked:
    form_class = page_of(site, "registry.ImportJob").get_form(request, None, change=False)
    sources = sources_below_roots()
    job = subject.job
    initial = {
        "model_name": request.GET.get("model", "") if job is None else job.model_name,
        "kind": "root" if job is None else job.kind,
        "source": sources[0] if len(sources) == 1 else "",
    }
    form = form_class(data, prefix="import", initial=initial)
    if form.is_bound and form.is_valid():
        name = form.cleaned_data["model_name"]
    else:
        name = "" if form.is_bound else initial["model_name"]
    checks = _name_checks(name) if name else ()
    if form.is_bound and form.is_valid() and form.cleaned_data["source"]:
        checks += (Check(tone="good", said=f"It is there: {form.cleaned_data['source']}"),)
    return Asked(form=form, checks=checks)


def _name_checks(name: str) -> tuple[Check, ...]:
    latest = model_version_latest(name)
    if latest is None:
        said = f"There is no model {name} yet: this makes it, with version 1."
    else:
        said = (
            f"It becomes {name} v{latest.version + 1}, beside {latest}; an artifact that was "
            "imported before stays the version that it is."
        )
    return (Check(tone="good", said=said),)


# -- deploy ------------------------------------------------------------------------------------


def deploy_asked(
    request: HttpRequest, site: AdminSite, subject: Subject, *, data: QueryDict | None = None
) -> Asked:
    page = page_of(site, "deployments.Deployment")
    version, now = subject.version, timezone.now()
    assert version is not None
    form_class = page.get_form(request, None, change=False, fields=DEPLOY_FIELDS)
    deployment = page.model(model_version=version)
    if data is None:
        wanted = slugify(f"{version.model}-v{version.version}")[:_NAME_CHARS]
        deployment.name = deployment_name_free(wanted)
        deployment.kv_cache_tokens = kv_cache_proposed(deployment, now=now)
    form = form_class(data, prefix="deploy", instance=deployment)
    checks = [_stage_check(subject)]
    if data is None or form.is_valid():
        checks.append(_fit_check(form.instance))
    return Asked(form=form, checks=tuple(checks))


def _stage_check(subject: Subject) -> Check:
    assert subject.version is not None
    if refusal := stage_refusal(subject.version):
        return Check(tone="bad", said=refusal)
    if subject.version.stage == Stage.DRAFT:
        return Check(tone="warn", said=f"{subject.version} is a draft: nobody verified it.")
    stage = subject.version.get_stage_display().lower()
    return Check(tone="good", said=f"{subject.version} is {stage} and may be deployed.")


def _fit_check(deployment: Any) -> Check:
    fit = fit_of(deployment, now=timezone.now())
    if fit.refusal:
        return Check(tone="bad", said=fit.refusal)
    if not fit.is_known:
        return Check(tone="warn", said="No agent has said what memory there is: not checked.")
    return Check(tone="good", said=f"It fits beside what runs. A replica needs {fit.needs}")


# -- route -------------------------------------------------------------------------------------


def route_asked(
    request: HttpRequest, site: AdminSite, subject: Subject, *, data: QueryDict | None = None
) -> Asked:
    assert subject.version is not None
    page = page_of(site, "routing.Route")
    if subject.route is not None:
        return _weights_asked(request, page, subject, data=data)
    form_class = page.get_form(request, None, change=False, fields=("name",))
    form = form_class(data, prefix="route", initial={"name": str(subject.version.model)})
    said = f"A new name: all of its requests go to {subject.deployment}."
    checks = [Check(tone="good", said=said)] if data is None or form.is_valid() else []
    return Asked(form=form, checks=(*checks, *_ready_checks(subject)))


def _weights_asked(
    request: HttpRequest, page: Any, subject: Subject, *, data: QueryDict | None
) -> Asked:
    """The rows of the route's own page, and one for the deployment where it is none of them."""
    inline = next(
        each
        for each in page.get_inline_instances(request, subject.route)
        if each.model._meta.label == "routing.RouteTarget"
    )
    formset_class = inline.get_formset(request, subject.route)
    is_joining = subject.target is None
    formset_class.extra = 1 if is_joining else 0
    joining = [{"deployment": subject.deployment}] if is_joining else None
    formset = formset_class(
        data,
        instance=subject.route,
        queryset=inline.get_queryset(request),
        initial=None if data is not None else joining,
        prefix="targets",
    )
    if data is None:
        _propose(formset, subject, share=_share(request, is_joining=is_joining))
    rows = tuple(_row(form, subject) for form in formset.forms)
    return Asked(formset=formset, rows=rows, checks=_weight_checks(formset, rows, subject))


def _share(request: HttpRequest, *, is_joining: bool) -> int | None:
    """Return the percent that the deployment shall get; None leaves the weights as they are."""
    text = request.GET.get("share", "")
    if text.isascii() and text.isdecimal() and len(text) <= len(str(WHOLE)):
        return min(int(text), WHOLE)
    return SHARES[0] if is_joining else None


def _propose(formset: Any, subject: Subject, *, share: int | None) -> None:
    own = [form for form in formset.forms if _is_own(form, subject)]
    if share is None or not own:  # a route has as many as it may have
        return
    others = [form for form in formset.forms if not _is_own(form, subject)]
    weights = weights_proposed([form.instance.weight for form in others], share=share)
    for form, weight in zip([*others, *own], weights, strict=True):
        form.initial["weight"] = weight


def _is_own(form: Any, subject: Subject) -> bool:
    assert subject.deployment is not None
    return form.instance.pk is None or form.instance.deployment_id == subject.deployment.pk


def _row(form: Any, subject: Subject) -> Row:
    is_own = _is_own(form, subject)
    name = str(subject.deployment) if is_own else str(form.instance.deployment)
    return Row(name=name, form=form, is_new=is_own)


def _weight_checks(formset: Any, rows: tuple[Row, ...], subject: Subject) -> tuple[Check, ...]:
    if not formset.is_bound:
        weights = [(row.name, int(row.form["weight"].value() or 0)) for row in rows]
    elif formset.is_valid():
        weights = [(str(each.deployment), each.weight) for each in formset.specs]
    else:
        return ()
    together = sum(weight for _, weight in weights)
    said = f"They sum to {together}: {shares_said(weights)}."
    is_odd = formset.is_bound and together != WHOLE
    checks = [Check(tone="warn" if is_odd else "good", said=said)]
    if subject.route is not None and not subject.route.is_active:
        checks.append(Check(tone="warn", said=f"{subject.route} is switched off."))
    return (*checks, *_ready_checks(subject))


def _ready_checks(subject: Subject) -> tuple[Check, ...]:
    live = subject.live
    if live is None or live.n_ready:
        return ()
    said = f"{subject.deployment} is not ready: until it is, others on the route get its share."
    return (Check(tone="warn", said=said),)
