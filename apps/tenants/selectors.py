"""Reads of the tenants room."""

from collections.abc import Collection

from django.contrib.auth.base_user import AbstractBaseUser
from django.db.models import Q

from apps.core.limits import UNLIMITED, Limits
from apps.tenants.models import EndUser, Plan, Tenant


def tenant_of_user(user: AbstractBaseUser) -> Tenant | None:
    """Return the tenant that the user works in: the first active one they joined, or None."""
    return (
        Tenant.objects.select_related("plan")
        .filter(memberships__user_id=user.pk, is_active=True)
        .order_by("memberships__id")
        .first()
    )


def tenant_names(tenant_ids: set[int]) -> dict[int, str]:
    """Return the names of tenants by id, in one query; those that are gone are left out."""
    return dict(Tenant.objects.filter(pk__in=tenant_ids).values_list("pk", "name"))


def tenant_choices(*, limit: int, within: Collection[int] | None) -> list[tuple[int, str]]:
    """Return (id, name) of tenants by name, for a filter. within: ids of those that may be seen;
    None is all."""
    rows = Tenant.objects.all() if within is None else Tenant.objects.filter(pk__in=within)
    return list(rows.order_by("name").values_list("pk", "name")[:limit])


def tenants_among(*, ids: Collection[int] = (), slugs: Collection[str] = ()) -> list[Tenant]:
    """Return the tenants that have one of these ids or slugs, in one query."""
    return list(Tenant.objects.filter(Q(pk__in=ids) | Q(slug__in=slugs)).order_by("name"))


def tenant_by_slug(slug: str) -> Tenant | None:
    return Tenant.objects.filter(slug=slug).first()


def plan_by_slug(slug: str) -> Plan:
    """Raises Plan.DoesNotExist."""
    return Plan.objects.get(slug=slug)


def plan_slugs() -> list[str]:
    return list(Plan.objects.order_by("slug").values_list("slug", flat=True))


def tenant_limits(tenant: Tenant) -> Limits:
    """Return what holds for a tenant: its plan's limits, or its own in their place."""
    return Limits.of(tenant.plan).overridden_by(Limits.of(tenant))


def has_end_users(tenant_id: int) -> bool:
    """Return whether anyone whom the tenant serves has limits."""
    return EndUser.objects.filter(tenant_id=tenant_id).exists()


def end_user_limits(*, tenant_id: int, identifier: str) -> Limits:
    """Return what holds for one whom a tenant serves: their own limits in place of everyone's."""
    rows = {
        row.identifier: Limits.of(row)
        for row in EndUser.objects.filter(
            tenant_id=tenant_id, identifier__in=(identifier, EndUser.EVERYONE)
        )
    }
    everyone = rows.get(EndUser.EVERYONE, UNLIMITED)
    return everyone.overridden_by(rows.get(identifier, UNLIMITED))


def plan_get(plan_id: int) -> Plan | None:
    return Plan.objects.filter(pk=plan_id).first()


def tenant_get(tenant_id: int) -> Tenant | None:
    """Return a tenant with its plan."""
    return Tenant.objects.select_related("plan").filter(pk=tenant_id).first()


def tenants_of_plan(plan: Plan, *, limit: int) -> list[Tenant]:
    """Return the tenants that have a plan, by name, each with it."""
    rows = Tenant.objects.select_related("plan").filter(plan=plan)
    return list(rows.order_by("name")[:limit])


def is_second_person_demanded(tenant_ids: Collection[int] | None) -> bool:
    """Return whether an active tenant of these, or any at all, wants two persons for rollouts."""
    rows = Tenant.objects.filter(is_active=True, needs_second_person=True)
    return (rows if tenant_ids is None else rows.filter(pk__in=tenant_ids)).exists()


def is_judging_allowed(slugs: Collection[str]) -> bool:
    """Return whether any of these tenants lets its answers be judged; without slugs, any at all."""
    rows = Tenant.objects.filter(is_active=True, allows_judging=True)
    return (rows.filter(slug__in=slugs) if slugs else rows).exists()


def tenants_allowing_judging(ids: Collection[int]) -> set[int]:
    """Return which of these tenants let their answers be kept until a judge has scored them."""
    rows = Tenant.objects.filter(pk__in=ids, is_active=True, allows_judging=True)
    return set(rows.values_list("pk", flat=True))
