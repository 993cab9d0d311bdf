"""The access review: who may do what, where, and why. Told from the rows that the checks read."""

from collections.abc import Iterable, Iterator

from django.contrib.auth.models import Permission
from django.db.models import QuerySet

from apps.core.tenancy import every_tenant
from apps.rbac.models import ApiToken, Role, RoleGrant, User
from apps.rbac.permissions import TENANT_PERMISSIONS, holders_of
from apps.rbac.powers import object_permission_tables
from apps.rbac.types import OWNED_SCOPES, SCOPES, AccessEntry, scope_permissions

EVERYTHING = "*"


def access_review(*, username: str = "", tenant_slug: str = "") -> Iterator[AccessEntry]:
    """Yield who may do what; username: of one person and their tokens. tenant_slug: of the members
    and the tokens of one tenant. Both empty: of everyone."""
    users, tokens = User.objects.all(), ApiToken.objects.all()
    if username:
        users, tokens = users.filter(username=username), tokens.filter(owner__username=username)
    if tenant_slug:
        users = users.filter(memberships__tenant__slug=tenant_slug)
        tokens = tokens.filter(tenant__slug=tenant_slug)
    with every_tenant("who may do what, everywhere or where the filter says"):
        return iter(list(_entries(users=users, tokens=tokens)))


def _entries(*, users: QuerySet[User], tokens: QuerySet[ApiToken]) -> Iterator[AccessEntry]:
    """In an order that does not change, in a number of queries that does not grow with them."""
    people = list(
        users.order_by("username").prefetch_related(
            "user_permissions__content_type", "groups__permissions__content_type"
        )
    )
    roles = {role.pk: role for role in Role.objects.prefetch_related("permissions__content_type")}
    for person in people:
        yield from _of_person(person)
    grants = RoleGrant.objects.select_related(
        "user", "membership__user", "membership__tenant", "mapping"
    )
    shown = {person.pk for person in people}
    for grant in grants.order_by("id"):
        if grant.holder.pk in shown:
            yield from _of_grant(grant, roles[grant.role_id])
    yield from _of_objects(people)
    yield from _of_tokens(list(tokens.select_related("tenant", "owner").order_by("id")))


def _of_person(person: User) -> Iterator[AccessEntry]:
    if person.is_superuser:
        yield _entry(person, EVERYTHING, where="everywhere", why="superuser")
    for permission in person.user_permissions.all():
        yield _entry(person, _name(permission), where="everywhere", why="given directly")
    for group in person.groups.all():
        for permission in group.permissions.all():
            yield _entry(person, _name(permission), where="everywhere", why=f"group {group}")


def _of_grant(grant: RoleGrant, role: Role) -> Iterator[AccessEntry]:
    tenant = None if grant.membership is None else grant.membership.tenant
    if grant.mapping is not None:
        given_by = f", by group {grant.mapping.group} of the provider"
    else:
        given_by = f", given by {grant.granted_by}" if grant.granted_by else ""
    for name in sorted(map(_name, role.permissions.all())):
        if tenant is None:
            yield _entry(grant.holder, name, where="everywhere", why=f"role {role}{given_by}")
        elif name in TENANT_PERMISSIONS:
            yield _entry(
                grant.holder,
                name,
                where=f"tenant:{tenant.slug}",
                why=f"role {role} as a member{given_by}",
                is_effective=tenant.is_active,
            )


def _of_objects(people: Iterable[User]) -> Iterator[AccessEntry]:
    holders = {person.pk for person in people}
    for table in object_permission_tables():
        rows = table._default_manager.select_related("user", "permission__content_type")
        for row in rows.filter(user__in=holders).prefetch_related("content_object").order_by("id"):
            where = f"{row.permission.content_type.model}:{row.content_object}"
            yield _entry(row.user, _name(row.permission), where=where, why="given on this object")


def _of_tokens(tokens: list[ApiToken]) -> Iterator[AccessEntry]:
    owners = {token.owner_id for token in tokens if token.owner_id is not None}
    holders = {name: holders_of(name, owners) for name in sorted(scope_permissions(SCOPES))}
    for token in tokens:
        yield from _of_managing(token)
        is_effective = token.is_live and token.tenant.is_active
        for name in sorted(scope_permissions(token.scopes)):
            may = token.owner_id is None or holders[name].include(
                token.owner_id, tenant_id=token.tenant_id
            )
            yield AccessEntry(
                kind="token",
                subject=str(token),
                permission=name,
                where=f"tenant:{token.tenant.slug}",
                why=f"token of {token.owner}" if token.owner else "the tenant's own token",
                is_effective=is_effective and may,
            )


def _of_managing(token: ApiToken) -> Iterator[AccessEntry]:
    """A token that is somebody's whole power: what that is, their own entries tell."""
    owner = token.owner
    if owner is not None:
        for scope in sorted(OWNED_SCOPES.intersection(token.scopes)):
            yield AccessEntry(
                kind="token",
                subject=str(token),
                permission=scope,
                where="everywhere",
                why=f"token of {owner}, for whatever they may",
                is_effective=token.is_live and token.tenant.is_active and owner.is_active,
            )


def _entry(
    person: User, permission: str, *, where: str, why: str, is_effective: bool = True
) -> AccessEntry:
    return AccessEntry(
        kind="service account" if person.is_service else "person",
        subject=person.get_username(),
        permission=permission,
        where=where,
        why=why,
        is_effective=is_effective and person.is_active,
    )


def _name(permission: Permission) -> str:
    return f"{permission.content_type.app_label}.{permission.codename}"
