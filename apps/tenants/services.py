"""Writes of the tenants room. A tenant is switched off, never deleted: the ledger speaks of it."""

import secrets
from typing import Any, Final, TypeVar

from django.contrib.auth.base_user import AbstractBaseUser
from django.db import transaction

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.services import change_stamp_bump, model_changes
from apps.tenants.models import EndUser, Membership, Plan, Tenant

T = TypeVar("T", Plan, EndUser)

# Requests a minute and tokens a day; operators change them as they please.
_TIERS: Final[dict[str, dict[str, Any]]] = {
    "free": {"requests_per_minute": 60, "tokens_per_day": 10_000},
    "pro": {"requests_per_minute": 600, "tokens_per_day": 100_000, "weight": 2.0},
    "enterprise": {"weight": 4.0},
}


@transaction.atomic
def plans_seed() -> None:
    """Put the standard plans in place, unless somebody made plans of their own."""
    known = set(Plan.objects.values_list("slug", flat=True))
    if not known - {"enterprise"}:
        Plan.objects.bulk_create(
            Plan(name=slug.capitalize(), slug=slug, **fields)
            for slug, fields in _TIERS.items()
            if slug not in known
        )


def plan_save(*, plan: Plan, actor: Actor) -> Plan:
    """Make or change a plan; every tenant that has it feels it within the poll of the stamps."""
    return _save(plan, kind="plan", actor=actor)


@transaction.atomic
def plan_delete(*, plan: Plan, actor: Actor) -> None:
    """Raises ProtectedError while a tenant has it."""
    event_record(action="plan.deleted", actor=actor, obj=plan, changes={"slug": plan.slug})
    plan.delete()


def end_user_save(*, end_user: EndUser, actor: Actor) -> EndUser:
    """Make or change the limits of one whom a tenant serves."""
    return _save(end_user, kind="end_user", actor=actor, tenant_id=end_user.tenant_id)


@transaction.atomic
def end_user_delete(*, end_user: EndUser, actor: Actor) -> None:
    """From now on what holds for everyone holds for them."""
    event_record(
        action="end_user.deleted",
        actor=actor,
        obj=end_user,
        tenant_id=end_user.tenant_id,
        changes={"identifier": end_user.identifier},
    )
    end_user.delete()
    change_stamp_bump("access")


@transaction.atomic
def tenant_create(*, name: str, slug: str, plan: Plan, actor: Actor, **fields: Any) -> Tenant:
    """Make a tenant. fields: others of the model's, such as limits of its own."""
    tenant = Tenant(name=name, slug=slug, plan=plan, **fields)
    tenant.cache_salt = secrets.token_hex(32)
    tenant.full_clean()
    changes = model_changes(obj=tenant, stored=Tenant())
    tenant.save()
    event_record(
        action="tenant.created",
        actor=actor,
        obj=tenant,
        tenant_id=tenant.pk,
        changes=changes,
    )
    return tenant


@transaction.atomic
def tenant_update(*, tenant: Tenant, actor: Actor) -> Tenant:
    """Save the values that ``tenant`` carries; switching it off refuses its tokens everywhere."""
    stored = Tenant.objects.select_for_update().get(pk=tenant.pk)
    changes = model_changes(obj=tenant, stored=stored)
    if not changes:
        return tenant
    tenant.full_clean()
    tenant.save()
    event_record(
        action="tenant.updated", actor=actor, obj=tenant, tenant_id=tenant.pk, changes=changes
    )
    change_stamp_bump("access")
    return tenant


@transaction.atomic
def membership_add(*, tenant: Tenant, user: AbstractBaseUser, actor: Actor) -> Membership:
    membership = Membership(tenant=tenant, user_id=user.pk)
    membership.full_clean()
    membership.save()
    event_record(
        action="membership.added",
        actor=actor,
        obj=membership,
        tenant_id=tenant.pk,
        changes={"user": user.get_username()},
    )
    change_stamp_bump("access")
    return membership


@transaction.atomic
def membership_remove(*, membership: Membership, actor: Actor) -> None:
    event_record(
        action="membership.removed",
        actor=actor,
        obj=membership,
        tenant_id=membership.tenant_id,
        changes={"user": membership.user.get_username()},
    )
    membership.delete()
    change_stamp_bump("access")


@transaction.atomic
def _save(row: T, *, kind: str, actor: Actor, tenant_id: int | None = None) -> T:
    """Save a new row or a changed one, with its event, and let every process feel it."""
    stored = type(row)._base_manager.select_for_update().filter(pk=row.pk).first()
    changes = model_changes(obj=row, stored=stored or type(row)())
    if not changes:
        return row
    row.full_clean()
    row.save()
    event_record(
        action=f"{kind}.{'created' if stored is None else 'updated'}",
        actor=actor,
        obj=row,
        tenant_id=tenant_id,
        changes=changes,
    )
    change_stamp_bump("access")
    return row
