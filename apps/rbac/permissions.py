"""The one permission layer: what a person may do, where, and why. Doors and the admin ask nothing
else; it knows no room above this one."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from django.apps import apps
from django.contrib.auth.models import Permission
from django.db.models import Q, QuerySet

from apps.core.access import NOTHING, Access
from apps.core.tenancy import every_tenant, tenants_only, whichever_tenant
from apps.rbac.types import USE_ROUTE

if TYPE_CHECKING:
    from apps.rbac.models import User

# What a role may give inside one tenant. The rest (plans, models, engines, routes, people, roles)
# belongs to the platform: a tenant's owner raises no limit of their own and starts no engine.
TENANT_PERMISSIONS: Final = frozenset(
    {
        USE_ROUTE,
        "tenants.view_tenant",
        *(
            f"{app}.{verb}_{model}"
            for app, model in (
                ("tenants", "membership"), ("tenants", "enduser"),
                ("rbac", "apitoken"), ("rbac", "rolegrant"),
                ("batches", "batch"), ("batches", "uploadedfile"),
            )
            for verb in ("view", "add", "change", "delete")
        ),
        "metering.view_usagerecord",
        "feedback.view_metricevent",
        "engines.view_quarantinedrequest",
        "audit.view_auditevent",
    }
)  # fmt: skip


def access_of(user: "User") -> Access:
    """Return what a person holds at this moment, in two queries at most; nothing while they are
    switched off. Permissions on single objects are guardian's, and are not among it."""
    if not user.is_active:
        return Access()
    return Access(is_superuser=True) if user.is_superuser else held_by(user)


def rows_open(access: Access) -> None:
    """Let the work at hand touch the rows of every tenant, for who may see something of each, or of
    the tenants in which somebody has a role."""
    if access.is_superuser or access.platform & TENANT_PERMISSIONS:
        whichever_tenant()
    else:
        tenants_only(access.tenants)


def access_within(access: Access, tenant_id: int) -> frozenset[str]:
    """Return everything that is allowed in a tenant, of what there is to do in one."""
    if access.is_superuser:
        return TENANT_PERMISSIONS
    return (access.platform & TENANT_PERMISSIONS) | access.tenants.get(tenant_id, NOTHING)


@every_tenant("what somebody may do is asked before it is known whose rows they may see")
def held_by(user: "User") -> Access:
    """Return what was given to a person, also while they are switched off."""
    from apps.rbac.models import RoleGrant

    platform = set(_names(Permission.objects.filter(Q(user=user) | Q(group__user=user))))
    tenants: defaultdict[int, set[str]] = defaultdict(set)
    rows = RoleGrant.objects.filter(
        Q(user=user) | Q(membership__user=user, membership__tenant__is_active=True)
    ).values_list(
        "membership__tenant_id",
        "role__permissions__content_type__app_label",
        "role__permissions__codename",
    )
    for tenant_id, app, codename in rows:
        if codename is None:  # a role without permissions
            continue
        name = f"{app}.{codename}"
        if tenant_id is None:
            platform.add(name)
        elif name in TENANT_PERMISSIONS:
            tenants[tenant_id].add(name)
    return Access(
        platform=frozenset(platform),
        tenants=MappingProxyType({key: frozenset(held) for key, held in tenants.items()}),
    )


@every_tenant("people may do it in tenants of their own")
def holders_of(permission: str, user_ids: Collection[int]) -> "Holders":
    """Return who of these people may do something, in three queries whatever their number."""
    from apps.rbac.models import RoleGrant, User

    app, _, codename = permission.partition(".")
    named = {"content_type__app_label": app, "codename": codename}
    active = User.objects.filter(pk__in=user_ids, is_active=True)
    direct = Permission.objects.filter(**named)
    everywhere = set(
        active.filter(
            Q(is_superuser=True)
            | Q(user_permissions__in=direct)
            | Q(groups__permissions__in=direct)
        ).values_list("pk", flat=True)
    )
    grants = RoleGrant.objects.filter(
        Q(user__in=active) | Q(membership__user__in=active, membership__tenant__is_active=True),
        role__permissions__in=direct,
    ).values_list("user_id", "membership__user_id", "membership__tenant_id")
    members: set[tuple[int, int]] = set()
    for user_id, member_id, tenant_id in grants:
        if user_id is not None:
            everywhere.add(user_id)
        else:
            members.add((member_id, tenant_id))
    return Holders(everywhere=frozenset(everywhere), members=frozenset(members))


@dataclass(frozen=True, slots=True, kw_only=True)
class Holders:
    """everywhere: ids of people. members: of people and the tenant in which they may."""

    everywhere: frozenset[int]
    members: frozenset[tuple[int, int]]

    def include(self, user_id: int, *, tenant_id: int) -> bool:
        return user_id in self.everywhere or (user_id, tenant_id) in self.members


def grantable_permissions() -> QuerySet[Permission]:
    """Return the permissions of our own rooms: the framework's tables have no pages here."""
    labels = [each.label for each in apps.get_app_configs() if each.name.startswith("apps.")]
    return Permission.objects.filter(content_type__app_label__in=labels).select_related(
        "content_type"
    )


def tenant_id_of(obj: Any) -> int | None:
    """Return the tenant that a row belongs to, or is; None for a row of the platform."""
    if obj._meta.label == "tenants.Tenant":
        return int(obj.pk) if obj.pk is not None else None
    tenant_id = getattr(obj, "tenant_id", None)
    return int(tenant_id) if tenant_id is not None else None


def _names(permissions: "QuerySet[Permission]") -> list[str]:
    pairs = permissions.values_list("content_type__app_label", "codename")
    return [f"{label}.{codename}" for label, codename in pairs]
