"""Writes of roles: what they are, and who has them. Nobody hands on what they do not have, so that
nobody raises themselves either."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from django.contrib.auth.models import Permission
from django.db import transaction

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.exceptions import Conflict, InvalidRequest, PermissionDenied
from apps.core.services import change_stamp_bump, model_changes
from apps.core.tenancy import every_tenant
from apps.rbac.builtin_roles import BUILTIN_ROLES
from apps.rbac.models import Role, RoleGrant, User
from apps.rbac.permissions import TENANT_PERMISSIONS, grantable_permissions
from apps.tenants.services import membership_add, membership_remove

if TYPE_CHECKING:
    from apps.tenants.models import Membership, Tenant


@every_tenant("members of whichever tenant get their role")
@transaction.atomic
def roles_seed() -> None:
    """Put the roles that come with the platform in place, with today's permissions. Members from
    before there were roles get the one that lets them do what they could."""
    is_first = not Role.objects.exists()
    names = {_name(each): each for each in grantable_permissions()}
    for builtin in BUILTIN_ROLES:
        role, _ = Role.objects.update_or_create(
            slug=builtin.slug,
            defaults={
                "name": builtin.name,
                "description": builtin.description,
                "is_builtin": True,
            },
        )
        wanted = [row for name, row in names.items() if builtin.gives(name)]
        role.permissions.set(wanted)
    if is_first:
        developer = Role.objects.get(slug="developer")
        members = RoleGrant._meta.get_field("membership").related_model._default_manager
        RoleGrant.objects.bulk_create(
            RoleGrant(role=developer, membership_id=row.pk)
            for row in members.filter(role_grants=None)
        )


@transaction.atomic
def role_save(
    *, role: Role, permissions: Iterable[Permission], by: User | None, actor: Actor
) -> Role:
    """Make a role or change one of our own; whoever has it has the new permissions at once.

    by: the person who asks; None where the platform does.

    Raises:
        Conflict: it comes with the platform.
        PermissionDenied: it would give, or take, what ``by`` may not do.
    """
    stored = Role.objects.select_for_update().filter(pk=role.pk).first()
    if role.is_builtin or (stored is not None and stored.is_builtin):
        raise Conflict("This role comes with the platform; make one of your own beside it.")
    rows = list(permissions)
    after = {_name(row) for row in rows}
    before = permissions_of(stored) if stored is not None else frozenset()
    check_covers(by, before | after, tenant_id=None)
    changes = model_changes(obj=role, stored=stored or Role())
    if before != after:
        changes["permissions"] = [sorted(before - after), sorted(after - before)]
    if stored is not None and not changes:
        return role
    role.full_clean()
    role.save()
    role.permissions.set(rows)
    event_record(
        action=f"role.{'created' if stored is None else 'updated'}",
        actor=actor,
        obj=role,
        changes=changes,
    )
    change_stamp_bump("access")
    return role


@transaction.atomic
def role_delete(*, role: Role, by: User | None, actor: Actor) -> None:
    """Raises ProtectedError while somebody has it, and as ``role_save``."""
    stored = Role.objects.select_for_update().get(pk=role.pk)
    if stored.is_builtin:
        raise Conflict("This role comes with the platform.")
    check_covers(by, permissions_of(stored), tenant_id=None)
    event_record(action="role.deleted", actor=actor, obj=stored)
    stored.delete()


@transaction.atomic
def role_grant(
    *,
    role: Role,
    actor: Actor,
    by: User | None,
    user: User | None = None,
    membership: Membership | None = None,
) -> RoleGrant:
    """Give somebody a role: everywhere (``user``), or in one tenant (``membership``).

    Raises:
        PermissionDenied: ``by`` may not, or it would give what ``by`` does not have.
        InvalidRequest: in a tenant the role would give nothing.
    """
    tenant_id = None if membership is None else membership.tenant_id
    check_may(by, "rbac.add_rolegrant", tenant_id=tenant_id)
    check_covers(by, given_by(role, tenant_id=tenant_id), tenant_id=tenant_id)
    grant = RoleGrant(role=role, user=user, membership=membership, granted_by=by)
    grant.full_clean()
    grant.save()
    event_record(
        action="role.granted",
        actor=actor,
        obj=grant,
        tenant_id=tenant_id,
        changes={"role": role.slug, "user": grant.holder.get_username()},
    )
    change_stamp_bump("access")
    return grant


@transaction.atomic
def role_grant_remove(*, grant: RoleGrant, by: User | None, actor: Actor) -> None:
    """Take a role away; raises PermissionDenied where ``by`` could not have given it."""
    tenant_id = grant.tenant_id
    given = permissions_of(grant.role)
    check_may(by, "rbac.delete_rolegrant", tenant_id=tenant_id)
    check_covers(by, given & TENANT_PERMISSIONS if tenant_id else given, tenant_id=tenant_id)
    event_record(
        action="role.withdrawn",
        actor=actor,
        obj=grant,
        tenant_id=tenant_id,
        changes={"role": grant.role.slug, "user": grant.holder.get_username()},
    )
    grant.delete()
    change_stamp_bump("access")


@transaction.atomic
def member_add(
    *, tenant: Tenant, user: User, role: Role, by: User | None, actor: Actor
) -> Membership:
    """Let somebody into a tenant, with a role there.

    Raises:
        PermissionDenied: as ``role_grant``.
    """
    check_may(by, "tenants.add_membership", tenant_id=tenant.pk)
    membership = membership_add(tenant=tenant, user=user, actor=actor)
    role_grant(role=role, membership=membership, by=by, actor=actor)
    return membership


@transaction.atomic
def member_remove(*, membership: Membership, by: User | None, actor: Actor) -> None:
    """Let somebody out of a tenant; their roles and tokens there end with it.

    Raises:
        PermissionDenied: ``by`` may not, or could not have given what they have.
    """
    check_may(by, "tenants.delete_membership", tenant_id=membership.tenant_id)
    for grant in RoleGrant.objects.filter(membership=membership).select_related("role"):
        role_grant_remove(grant=grant, by=by, actor=actor)
    membership_remove(membership=membership, actor=actor)


@transaction.atomic
def service_account_create(
    *, tenant: Tenant, name: str, role: Role, by: User | None, actor: Actor
) -> User:
    """Make a member of a tenant that never signs in, with a role there; it owns tokens.

    Raises:
        PermissionDenied: as ``role_grant``.
    """
    account = User(username=name, is_service=True)
    account.set_unusable_password()
    account.full_clean(exclude=["password"])
    account.save()
    event_record(
        action="service_account.created",
        actor=actor,
        obj=account,
        tenant_id=tenant.pk,
        changes={"username": name},
    )
    member_add(tenant=tenant, user=account, role=role, by=by, actor=actor)
    return account


def given_by(role: Role, *, tenant_id: int | None) -> frozenset[str]:
    """Return what a role gives: everywhere, or in a tenant.

    Raises:
        InvalidRequest: in a tenant it would give nothing.
    """
    given = permissions_of(role)
    if tenant_id is None:
        return given
    given &= TENANT_PERMISSIONS
    if not given:
        raise InvalidRequest("This role gives nothing inside a tenant.", param="role")
    return given


def check_may(by: User | None, permission: str, *, tenant_id: int | None) -> None:
    if by is not None and not by.access.may(permission, tenant_id=tenant_id):
        raise PermissionDenied


def check_covers(by: User | None, permissions: frozenset[str], *, tenant_id: int | None) -> None:
    if by is None or by.access.covers(permissions, tenant_id=tenant_id):
        return
    lacking = sorted(each for each in permissions if not by.access.may(each, tenant_id=tenant_id))
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    raise PermissionDenied(f"You do not have this yourself: {', '.join(lacking[:3])}{more}.")


def permissions_of(role: Role) -> frozenset[str]:
    return frozenset(_name(row) for row in role.permissions.select_related("content_type"))


def _name(permission: Permission) -> str:
    return f"{permission.content_type.app_label}.{permission.codename}"
