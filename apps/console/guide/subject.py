"""What a guide is about: the rows that its address names, or that follow from them, so far as this
person may see them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.apps import apps
from django.contrib.admin import AdminSite
from django.http import Http404, HttpRequest, QueryDict
from django.utils import timezone
from django.utils.http import urlencode

from apps.console.topics import JOB, ROUTE, RUN, kinds_open_to
from apps.core.access import access_in
from apps.deployments.selectors import live_state
from apps.deployments.types import LiveState
from apps.registry.selectors import stage_refusal, verification_latest, verifications_passed
from apps.routing.selectors import route_splits, targets_of
from apps.routing.types import RouteSplit, TargetSpec

if TYPE_CHECKING:
    from apps.deployments.models import Deployment
    from apps.registry.models import ImportJob, ModelVersion, VerificationRun
    from apps.routing.models import Route

NEW: Final = "new"  # in the place of a key: none of those that there are
_SHOWN: Final = 6


def page_of(site: AdminSite, label: str) -> Any:
    """Return the admin's pages of a model: whose forms, rows and permissions hold here as there."""
    return site.get_model_admin(apps.get_model(label))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """deployments: of the version; routes: that lead to the model; of each the first is shown
    unless the address names another. run, passed: the newest verification, and the newest that was
    passed. split: where this person may see it. anew: for what the address asks for a new one."""

    job: "ImportJob | None" = None
    version: "ModelVersion | None" = None
    run: "VerificationRun | None" = None
    passed: "VerificationRun | None" = None
    deployments: "tuple[Deployment, ...]" = ()
    deployment: "Deployment | None" = None
    routes: "tuple[Route, ...]" = ()
    route: "Route | None" = None
    targets: tuple[TargetSpec, ...] = ()
    split: RouteSplit | None = None
    anew: frozenset[str] = frozenset()

    @property
    def is_deployable(self) -> bool:
        return self.version is not None and not stage_refusal(self.version)

    @property
    def live(self) -> LiveState | None:
        return None if self.deployment is None else live_state(self.deployment)

    @property
    def is_routed(self) -> bool:
        """Whether the route leads to the deployment, be it in its chain."""
        return self.target is not None and (
            self.target.weight > 0 or self.target.fallback_order is not None
        )

    @property
    def target(self) -> TargetSpec | None:
        pk = None if self.deployment is None else self.deployment.pk
        return next((each for each in self.targets if each.deployment.pk == pk), None)

    @property
    def topics(self) -> str:
        """What the page asks to be told of while it is open."""
        asked: dict[str, int] = {}
        if self.job is not None and self.job.is_open:
            asked[JOB] = self.job.pk
        if self.run is not None and self.run.is_open:
            asked[RUN] = self.run.pk
        if self.split is not None:
            asked[ROUTE] = self.split.route_id
        return urlencode(asked)

    def query(self, **changed: Any) -> str:
        """Return what leads back to these rows, or to others; None leaves one out."""
        rows: Mapping[str, Any] = {
            "import": self.job if self.version is None else None,
            "version": self.version,
            "deployment": self.deployment,
            "route": self.route,
        }
        named = {name: row.pk for name, row in rows.items() if row is not None}
        named |= dict.fromkeys(self.anew, NEW) | changed
        return urlencode({name: value for name, value in named.items() if value is not None})


def subject_read(request: HttpRequest, site: AdminSite) -> Subject:
    """Return what the address is about.

    Raises:
        Http404: it names a row that is not there, or not for this person.
    """
    asked = request.GET
    version = _named(request, site, "registry.ModelVersion", asked.get("version"))
    if version is None:
        return Subject(job=_named(request, site, "registry.ImportJob", asked.get("import")))
    deployments = _deployments(request, site, version)
    deployment = _chosen(request, site, "deployments.Deployment", deployments, asked)
    routes = _routes(request, site, version, deployment)
    route = _chosen(request, site, "routing.Route", routes, asked)
    runs = access_in(request).may("registry.view_verificationrun")
    return Subject(
        version=version,
        run=verification_latest(version.pk) if runs else None,
        passed=verifications_passed([version.pk]).get(version.pk) if runs else None,
        deployments=deployments,
        deployment=deployment,
        routes=routes,
        route=route,
        targets=tuple(targets_of(route)) if route is not None else (),
        split=_split(request, route),
        anew=frozenset(name for name in ("deployment", "route") if asked.get(name) == NEW),
    )


def imports_open(request: HttpRequest, site: AdminSite) -> "list[ImportJob]":
    """Return the newest imports, to go on with."""
    page = page_of(site, "registry.ImportJob")
    if not page.has_view_permission(request):
        return []
    return list(page.get_queryset(request).select_related("model_version__model")[:_SHOWN])


def versions_newest(request: HttpRequest, site: AdminSite) -> "list[ModelVersion]":
    rows = page_of(site, "registry.ModelVersion").get_queryset(request)
    return list(rows.order_by("-id")[:_SHOWN])


def _named(request: HttpRequest, site: AdminSite, label: str, key: str | None) -> Any:
    """Return the row with that key; None where none is asked for."""
    if not key:
        return None
    page = page_of(site, label)
    row = page.get_object(request, key) if page.has_view_permission(request) else None
    if row is None:
        raise Http404
    return row


def _chosen(
    request: HttpRequest, site: AdminSite, label: str, rows: tuple[Any, ...], asked: QueryDict
) -> Any:
    """Return the row that the address names, else the first; None where it asks for a new one."""
    key = asked.get(label.rpartition(".")[2].lower())
    if key == NEW:
        return None
    if key is None:
        return next(iter(rows), None)
    known = next((row for row in rows if str(row.pk) == key), None)
    return known if known is not None else _named(request, site, label, key)


def _deployments(
    request: HttpRequest, site: AdminSite, version: "ModelVersion"
) -> "tuple[Deployment, ...]":
    page = page_of(site, "deployments.Deployment")
    if not page.has_view_permission(request):
        return ()
    return tuple(page.get_queryset(request).filter(model_version=version).order_by("-id")[:_SHOWN])


def _routes(
    request: HttpRequest,
    site: AdminSite,
    version: "ModelVersion",
    deployment: "Deployment | None",
) -> "tuple[Route, ...]":
    """Return the routes to the model: those that lead to the deployment already come first."""
    page = page_of(site, "routing.Route")
    if not page.has_view_permission(request):
        return ()
    rows = page.get_queryset(request).filter(
        targets__deployment__model_version__model_id=version.model_id
    )
    found = list(rows.distinct().order_by("name")[:_SHOWN])
    pk = None if deployment is None else deployment.pk

    def is_elsewhere(route: "Route") -> bool:
        return pk not in {target.deployment_id for target in route.targets.all()}

    return tuple(sorted(found, key=is_elsewhere))


def _split(request: HttpRequest, route: "Route | None") -> RouteSplit | None:
    if route is None or ROUTE not in kinds_open_to(access_in(request)):
        return None
    return next(iter(route_splits([route.pk], now=timezone.now())), None)
