"""Routes: public model names and where they lead, set as a whole or in part."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from django.db import transaction
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import InvalidRequest, NotFound, PermissionDenied
from apps.core.services import row_lock
from apps.deployments.selectors import deployment_named, deployments_visible_to
from apps.gateway.exceptions import PreconditionFailed
from apps.gateway.rest.operations import Operation
from apps.management.caller import Caller
from apps.management.rest.base import (
    MAY_CONFLICT,
    Ask,
    ManagementView,
    Shown,
    page_of,
    shown_with_tag,
)
from apps.management.wire import routes as wire
from apps.management.wire.common import Gone, PageQuery, given
from apps.routing.selectors import (
    route_named,
    routes_described,
    routes_visible_to,
    targets_merged,
    targets_of,
)
from apps.routing.services import route_create, route_delete, route_update
from apps.routing.types import TargetSpec
from apps.tenants.selectors import tenant_by_slug

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from apps.routing.models import Route

VIEW: Final = "routing.view_route"
CHANGE: Final = "routing.change_route"
_TAG: Final = "Routes"


class RouteListView(ManagementView):
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="listRoutes",
            summary="List the public model names and where they lead",
            tag=_TAG,
            answer=wire.RoutePage,
            query=PageQuery,
        )
    }

    async def get(self, request: Request) -> Response:
        return await self.done(request, _list)


class RouteView(ManagementView):
    http_method_names = ["get", "put", "patch", "delete"]
    operations: ClassVar = {
        "get": Operation(
            id="getRoute",
            summary="Look up a route",
            tag=_TAG,
            answer=wire.RouteObject,
            has_etag=True,
        ),
        "put": Operation(
            id="setRoute",
            summary="Make a route, or set all of one",
            tag=_TAG,
            answer=wire.RouteObject,
            body=wire.RouteBody,
            has_etag=True,
            if_match=True,
            if_none_match=True,
            errors=MAY_CONFLICT,
        ),
        "patch": Operation(
            id="updateRoute",
            summary="Set a part of a route",
            tag=_TAG,
            answer=wire.RouteObject,
            body=wire.RouteChange,
            has_etag=True,
            if_match=True,
            errors=MAY_CONFLICT,
        ),
        "delete": Operation(
            id="deleteRoute",
            summary="Remove a route",
            tag=_TAG,
            answer=Gone,
            if_match=True,
            errors=MAY_CONFLICT,
        ),
    }

    async def get(self, request: Request, name: str) -> Response:
        return await self.done(request, _get, name=name)

    async def put(self, request: Request, name: str) -> Response:
        return await self.done(request, _set, name=name)

    async def patch(self, request: Request, name: str) -> Response:
        return await self.done(request, _update, name=name)

    async def delete(self, request: Request, name: str) -> Response:
        return await self.done(request, _delete, name=name)


def _visible_routes(caller: Caller) -> "QuerySet[Route]":
    visible = routes_visible_to(caller.user)
    if visible is None:
        return routes_described()
    if not visible:
        raise PermissionDenied(f"For this you need {VIEW}.")
    return routes_described().filter(pk__in=visible)


def _visible(caller: Caller, name: str) -> "Route":
    row = _visible_routes(caller).filter(name=name).first()
    if row is None:
        raise NotFound(f"There is no route {name[:120]!r}.")
    return row


def _held(ask: Ask, name: str) -> "Route":
    """Return a route that they may change, held, if it is what the request is for."""
    row = _visible(ask.caller, name)
    ask.caller.require_of(row, CHANGE)
    row_lock(row)
    _match(ask, row)
    return row


def _match(ask: Ask, row: "Route") -> None:
    ask.match(_shown(row).tag)


def _shown(row: "Route") -> Shown:
    return shown_with_tag(wire.route_object(routes_described().get(pk=row.pk)))


def _list(ask: Ask) -> Shown:
    return page_of(
        wire.RoutePage,
        _visible_routes(ask.caller),
        ask.query,
        key="name",
        past=ask.query.after,
        show=wire.route_object,
    )


def _get(ask: Ask, *, name: str) -> Shown:
    return _shown(_visible(ask.caller, name))


@transaction.atomic
def _set(ask: Ask, *, name: str) -> Shown:
    visible = routes_visible_to(ask.caller.user)
    route = route_named(name)
    if route is None or not (visible is None or route.pk in visible):
        # Whether a name is taken is told to whoever may take one, and to nobody else.
        ask.caller.require("routing.add_route")
        ask.match(None)
        row = route_create(name=name, actor=ask.caller.actor, **_fields(ask, row=None))
        return _shown(row)
    row = _held(ask, name)
    if ask.is_for_new:
        raise PreconditionFailed(f"There is a route {name[:120]!r} already.")
    return _shown(route_update(route=row, actor=ask.caller.actor, **_fields(ask, row=row)))


@transaction.atomic
def _update(ask: Ask, *, name: str) -> Shown:
    row = _held(ask, name)
    return _shown(route_update(route=row, actor=ask.caller.actor, **_fields(ask, row=row)))


@transaction.atomic
def _delete(ask: Ask, *, name: str) -> Shown:
    row = _visible(ask.caller, name)
    ask.caller.require("routing.delete_route")
    row_lock(row)
    _match(ask, row)
    route_delete(route=row, actor=ask.caller.actor)
    return Shown(data=Gone(id=name, object="route"))


def _fields(ask: Ask, *, row: "Route | None") -> dict[str, Any]:
    """Return what a body sets, what it names looked up, for the services of routes."""
    fields = given(ask.body)
    targets, fallbacks = fields.pop("targets", None), fields.pop("fallbacks", None)
    before = targets_of(row) if row is not None else []
    if targets is not None or fallbacks is not None:
        fields["targets"] = _targets(ask, targets, fallbacks, before=before)
    if "aliases" in fields:
        fields["aliases"] = sorted(set(fields["aliases"]))
    if "tenants" in fields:
        fields["tenants"] = _tenants(ask, fields["tenants"], row=row)
    return fields


def _targets(
    ask: Ask,
    targets: Sequence[wire.TargetBody] | None,
    fallbacks: Sequence[str] | None,
    *,
    before: Sequence[TargetSpec],
) -> list[TargetSpec]:
    visible = deployments_visible_to(ask.caller.user)
    chosen = {each.deployment.pk for each in before}

    def deployment(name: str, *, param: str) -> Any:
        """Return one that they see, or that it leads to now."""
        found = deployment_named(name)
        if found is None or not (visible is None or found.pk in visible or found.pk in chosen):
            raise InvalidRequest(
                f"There is no deployment {name[:120]!r}.", code="invalid_value", param=param
            )
        return found

    shares = chain = None
    if targets is not None:
        shares = [
            TargetSpec(
                deployment=deployment(each.deployment, param=f"targets[{place}].deployment"),
                weight=each.weight,
            )
            for place, each in enumerate(targets)
        ]
    if fallbacks is not None:
        chain = [
            deployment(each, param=f"fallbacks[{place}]") for place, each in enumerate(fallbacks)
        ]
    return targets_merged(before, shares=shares, chain=chain)


def _tenants(ask: Ask, slugs: Sequence[str], *, row: "Route | None") -> list[Any]:
    """Return the tenants of these slugs, each one that they see or that it is for now."""
    within = ask.caller.access.tenants_where("tenants.view_tenant")
    chosen = {tenant.pk for tenant in row.tenants.all()} if row is not None else set()
    found = []
    for place, slug in enumerate(slugs):
        tenant = tenant_by_slug(slug)
        if tenant is None or not (within is None or tenant.pk in within | chosen):
            raise InvalidRequest(
                f"There is no tenant {slug[:120]!r}.",
                code="invalid_value",
                param=f"tenants[{place}]",
            )
        found.append(tenant)
    return found
