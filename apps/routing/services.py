"""Writes of routes. Each is one transaction with its audit event and its change stamp."""

from typing import Unpack

from django.db import transaction

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.services import change_stamp_bump, fields_set, plain
from apps.routing.models import Route
from apps.routing.types import ROUTES_STAMP, RouteFields


@transaction.atomic
def route_create(*, actor: Actor, **fields: Unpack[RouteFields]) -> Route:
    route = Route(**fields)
    route.full_clean()
    route.save()
    facts = {name: plain(value) for name, value in fields.items()}
    event_record(action="route.created", actor=actor, obj=route, changes=facts)
    change_stamp_bump(ROUTES_STAMP)
    return route


@transaction.atomic
def route_update(*, route: Route, actor: Actor, **fields: Unpack[RouteFields]) -> Route:
    """Set the given fields; running requests keep the engine that they have."""
    current = _route_lock(route)
    changes = fields_set(current, fields)
    if not changes:
        return current
    current.full_clean()
    current.save()
    event_record(action="route.updated", actor=actor, obj=current, changes=changes)
    change_stamp_bump(ROUTES_STAMP)
    return current


@transaction.atomic
def route_delete(*, route: Route, actor: Actor) -> None:
    current = _route_lock(route)
    event_record(action="route.deleted", actor=actor, obj=current)
    current.delete()
    change_stamp_bump(ROUTES_STAMP)


def _route_lock(route: Route) -> Route:
    return (
        Route.objects.select_for_update(of=("self",)).select_related("deployment").get(pk=route.pk)
    )
