"""Writes of the tenants room. A tenant is switched off, never deleted: the ledger speaks of it."""

import secrets

from django.contrib.auth.base_user import AbstractBaseUser
from django.db import transaction

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.services import change_stamp_bump, model_changes
from apps.tenants.models import Membership, Tenant


@transaction.atomic
def tenant_create(*, name: str, slug: str, actor: Actor, is_active: bool = True) -> Tenant:
    tenant = Tenant(name=name, slug=slug, is_active=is_active, cache_salt=secrets.token_hex(32))
    tenant.full_clean()
    tenant.save()
    event_record(
        action="tenant.created",
        actor=actor,
        obj=tenant,
        tenant_id=tenant.pk,
        changes={"name": name, "slug": slug, "is_active": is_active},
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
