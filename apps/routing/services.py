"""Writes of routes. Each is one transaction with its audit event and its change stamp."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

from django.core.exceptions import ValidationError
from django.db import models, transaction

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.services import change_stamp_bump, fields_set, plain
from apps.deployments.types import REMOTE_VERSION_ID
from apps.routing import leads
from apps.routing.defaults import defaults_said
from apps.routing.models import Route
from apps.routing.types import (
    RESPONSES_STAMP,
    ROUTES_STAMP,
    RouteFields,
    TargetSpec,
    person_digest,
    person_stamp,
    tenant_stamp,
    version_stamp,
)

if TYPE_CHECKING:
    from apps.registry.models import ModelVersion
    from apps.tenants.models import Tenant


@transaction.atomic
def route_create(
    *,
    actor: Actor,
    targets: Sequence[TargetSpec],
    aliases: Collection[str] = (),
    tenants: Iterable[Tenant] = (),
    **fields: Unpack[RouteFields],
) -> Route:
    """Make a route. targets: where it leads. aliases: its further names. tenants: for whom it is,
    if it is restricted.

    Raises:
        ValidationError: names the field; ``targets`` and ``aliases`` are such.
    """
    route = Route(**fields)
    route.full_clean()
    route.save()
    change_stamp_bump(ROUTES_STAMP)
    facts: dict[str, object] = {name: _plain(value) for name, value in fields.items()}
    facts |= {name: after for name, (_, after) in _leads_change(route, targets, aliases).items()}
    _leads_write(route, targets, aliases)
    facts |= _tenants_set(route, tenants)
    event_record(action="route.created", actor=actor, obj=route, changes=facts)
    return route


@transaction.atomic
def route_update(
    *,
    route: Route,
    actor: Actor,
    targets: Sequence[TargetSpec] | None = None,
    aliases: Collection[str] | None = None,
    tenants: Iterable[Tenant] | None = None,
    holder: str = "",
    **fields: Unpack[RouteFields],
) -> Route:
    """Set the given fields; running requests keep the engine that they have. targets, aliases,
    tenants: as for ``route_create``; None leaves them. Raises as it does, and where the route is
    held and its targets or its being active would change, or a new deployment wants two persons.
    holder: who may change those then."""
    current = _route_lock(route)
    if current.held_by not in ("", holder):
        _held_check(current, targets, fields)
        targets = None  # equal to what there is, but for what their holder wrote
    if targets is not None and not holder:
        leads.newcomers_check(current, targets)
    before = current.defaults
    changes: dict[str, object] = {**fields_set(current, fields)}
    if "defaults" in changes:
        changes["defaults"] = [_plain(before), _plain(current.defaults)]
    changes |= _leads_change(current, targets, aliases)
    if tenants is not None:
        changes |= _tenants_set(current, tenants)
    if not changes:
        if targets is not None and leads.targets_differ(current, targets):
            leads.targets_write(current, targets)
            change_stamp_bump(ROUTES_STAMP)
        return current
    current.full_clean()
    current.save()
    change_stamp_bump(ROUTES_STAMP)
    _leads_write(current, targets, aliases)
    event_record(action="route.updated", actor=actor, obj=current, changes=changes)
    return current


@transaction.atomic
def route_hold(*, route: Route, holder: str) -> Route:
    """Let nobody but this holder change where a route leads, until ``route_release``; return the
    route as it is now.

    Raises:
        ValidationError: of ``route``; another holds it.
    """
    current = _route_lock(route)
    if current.held_by not in ("", holder):
        raise ValidationError({"route": f"It is held by {current.held_by}."})
    Route.objects.filter(pk=current.pk).update(held_by=holder)
    current.held_by = holder
    return current


@transaction.atomic
def route_release(*, route: Route, holder: str) -> None:
    """End a hold; where this one does not hold it nothing happens."""
    Route.objects.filter(pk=route.pk, held_by=holder).update(held_by="")


@transaction.atomic
def route_delete(*, route: Route, actor: Actor) -> None:
    """Raises ValidationError where the route is held, or something still names it, such as an
    experiment."""
    current = _route_lock(route)
    if current.held_by:
        raise ValidationError(f"It is held by {current.held_by}.")
    event_record(action="route.deleted", actor=actor, obj=current)
    try:
        current.delete()
    except models.ProtectedError as error:
        users = ", ".join(sorted(str(obj) for obj in error.protected_objects)[:5])
        raise ValidationError(f"It is still used by: {users}.") from error
    change_stamp_bump(ROUTES_STAMP)


@transaction.atomic
def tenant_responses_purge(*, tenant: Tenant, actor: Actor) -> None:
    """Forget the kept answers of a tenant, in every process within a second."""
    event_record(action="responses.purged", actor=actor, obj=tenant, tenant_id=tenant.pk)
    _purged(tenant_stamp(tenant.pk))


@transaction.atomic
def person_responses_purge(*, tenant: Tenant, person: str, actor: Actor) -> None:
    """Forget what is kept of one of the people whom a tenant serves: the answers that were made for
    them. person: as requests name them in ``user``; the audit trail need not know who it was."""
    facts = {"because_of": "a person"}
    event_record(
        action="responses.purged", actor=actor, obj=tenant, tenant_id=tenant.pk, changes=facts
    )
    digest = person_digest(person, cache_salt=tenant.cache_salt)
    _purged(person_stamp(tenant.pk, digest))


@transaction.atomic
def version_responses_purge(*, model_version: ModelVersion, actor: Actor) -> None:
    """Forget what is kept of a model version's answers, in every process within a second."""
    event_record(action="responses.purged", actor=actor, obj=model_version)
    _purged(version_stamp(model_version.pk))


@transaction.atomic
def remote_responses_purge(*, actor: Actor) -> None:
    """Forget what is kept of remote models' answers: all of them, which have no version to tell
    them apart by."""
    event_record(action="responses.purged", actor=actor, changes={"because_of": "remote models"})
    _purged(version_stamp(REMOTE_VERSION_ID))


def _purged(stamp: str) -> None:
    change_stamp_bump(stamp)
    change_stamp_bump(RESPONSES_STAMP)


def _leads_change(
    route: Route, targets: Sequence[TargetSpec] | None, aliases: Collection[str] | None
) -> leads.Change:
    return leads.targets_change(route, targets) | leads.aliases_change(route, aliases)


def _leads_write(
    route: Route, targets: Sequence[TargetSpec] | None, aliases: Collection[str] | None
) -> None:
    """Write what is given, after the stamp of routes was moved."""
    if targets is not None:
        leads.targets_write(route, targets)
    if aliases is not None:
        leads.aliases_write(route, aliases)
    leads.names_check(route)


def _plain(value: object) -> object:
    return defaults_said(value) if isinstance(value, Mapping) else plain(value)


def _tenants_set(route: Route, tenants: Iterable[Tenant]) -> dict[str, list[list[str]]]:
    before = {tenant.slug: tenant for tenant in route.tenants.all()}
    after = {tenant.slug: tenant for tenant in tenants}
    if set(before) == set(after):
        return {}
    route.tenants.set(after.values())
    return {"tenants": [sorted(before), sorted(after)]}


def _held_check(current: Route, targets: Sequence[TargetSpec] | None, fields: RouteFields) -> None:
    """Raise ValidationError where what a holder decides would change."""
    problem = f"{current.held_by} decides where this route leads; pause or end it first."
    if leads.targets_change(current, targets):
        raise ValidationError({"targets": problem})
    if not fields.get("is_active", True) and current.is_active:
        raise ValidationError({"is_active": problem})


def _route_lock(route: Route) -> Route:
    return Route.objects.select_for_update().get(pk=route.pk)
