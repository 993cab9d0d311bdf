"""Writes of what groups of the single sign-on provider give, and of what people have by them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from django.db import transaction
from django.db.models import Q

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.services import change_stamp_bump
from apps.core.tenancy import every_tenant
from apps.rbac.models import GroupMapping, RoleGrant, User
from apps.rbac.services.roles import check_covers, check_may, given_by
from apps.tenants.services import membership_add, membership_remove

_GRANT_ROWS: Final = ("role", "mapping", "user", "membership__user", "membership__tenant")


@transaction.atomic
def group_mapping_add(*, mapping: GroupMapping, by: User | None, actor: Actor) -> GroupMapping:
    """Give a role to whoever is in a group, from their next sign-in on.

    by: the person who asks; None where the platform does.

    Raises:
        PermissionDenied: ``by`` may not, or it would give what ``by`` does not have.
        InvalidRequest: in a tenant the role would give nothing.
    """
    _check(mapping, by=by, verb="add")
    mapping.made_by = by
    mapping.full_clean()
    mapping.save()
    event_record(
        action="group_mapping.created",
        actor=actor,
        obj=mapping,
        tenant_id=mapping.tenant_id,
        changes={"group": mapping.group, "role": mapping.role.slug},
    )
    return mapping


@every_tenant("people in any tenant have roles by it")
@transaction.atomic
def group_mapping_delete(*, mapping: GroupMapping, by: User | None, actor: Actor) -> None:
    """Delete a mapping, and with it at once what people have by it.

    Raises:
        PermissionDenied: ``by`` could not have made it.
    """
    _check(mapping, by=by, verb="delete")
    grants = RoleGrant.objects.filter(mapping=mapping).select_related(*_GRANT_ROWS)
    for grant in grants.order_by("pk"):
        _withdraw(grant, actor=actor)
    event_record(
        action="group_mapping.deleted",
        actor=actor,
        obj=mapping,
        tenant_id=mapping.tenant_id,
        changes={"group": mapping.group, "role": mapping.role.slug},
    )
    mapping.delete()
    change_stamp_bump("access")


@every_tenant("a person may be a member of several")
@transaction.atomic
def mapped_grants_apply(*, user: User, groups: Collection[str], actor: Actor) -> None:
    """Let a person have by their groups exactly what the mappings say now. What was given by hand
    stays; a membership that is left without any role ends. In the order of the mappings, so that
    the audit log of a sign-in reads the same wherever."""
    User.objects.select_for_update().get(pk=user.pk)  # of two sign-ins at once one after the other
    mappings = GroupMapping.objects.filter(group__in=groups).select_related("role", "tenant")
    wanted = {row.pk: row for row in mappings.select_for_update(of=("self",)).order_by("pk")}
    grants = RoleGrant.objects.filter(
        Q(user=user) | Q(membership__user=user), mapping__isnull=False
    ).select_related(*_GRANT_ROWS)
    held = {grant.mapping_id: grant for grant in grants.order_by("pk")}
    for key, grant in held.items():
        if key not in wanted:
            _withdraw(grant, actor=actor)
    for key, mapping in wanted.items():
        if key not in held:
            _give(mapping, user=user, actor=actor)
    if held.keys() != wanted.keys():
        change_stamp_bump("access")
        user.__dict__.pop("_access", None)  # read anew by whoever asks next


def _check(mapping: GroupMapping, *, by: User | None, verb: str) -> None:
    """A mapping gives a role to people yet unknown, and lets them in: who makes one may do so
    everywhere, and has all of it."""
    check_may(by, f"rbac.{verb}_groupmapping", tenant_id=None)
    check_may(by, f"rbac.{verb}_rolegrant", tenant_id=None)
    tenant_id = mapping.tenant_id
    check_covers(by, given_by(mapping.role, tenant_id=tenant_id), tenant_id=tenant_id)


def _give(mapping: GroupMapping, *, user: User, actor: Actor) -> None:
    membership: Any = None
    if mapping.tenant is not None:
        members = RoleGrant._meta.get_field("membership").related_model._default_manager
        membership = members.filter(tenant=mapping.tenant, user=user).first()
        if membership is None:
            membership = membership_add(tenant=mapping.tenant, user=user, actor=actor)
    grant = RoleGrant.objects.create(
        role=mapping.role,
        user=user if membership is None else None,
        membership=membership,
        mapping=mapping,
    )
    _record("granted", grant, actor=actor)


def _withdraw(grant: RoleGrant, *, actor: Actor) -> None:
    membership = grant.membership
    _record("withdrawn", grant, actor=actor)
    grant.delete()
    if membership is not None and not RoleGrant.objects.filter(membership=membership).exists():
        membership_remove(membership=membership, actor=actor)


def _record(verb: str, grant: RoleGrant, *, actor: Actor) -> None:
    assert grant.mapping is not None
    event_record(
        action=f"role.{verb}",
        actor=actor,
        obj=grant,
        tenant_id=grant.tenant_id,
        changes={
            "role": grant.role.slug,
            "user": grant.holder.get_username(),
            "group": grant.mapping.group,
        },
    )
