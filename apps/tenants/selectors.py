"""Reads of the tenants room."""

from django.contrib.auth.base_user import AbstractBaseUser

from apps.tenants.models import Tenant


def tenant_of_user(user: AbstractBaseUser) -> Tenant | None:
    """Return the tenant that the user works in: the first active one they joined, or None."""
    return (
        Tenant.objects.filter(memberships__user_id=user.pk, is_active=True)
        .order_by("memberships__id")
        .first()
    )


def tenant_names(tenant_ids: set[int]) -> dict[int, str]:
    """Return the names of tenants by id, in one query; those that are gone are left out."""
    return dict(Tenant.objects.filter(pk__in=tenant_ids).values_list("pk", "name"))


def tenant_choices(*, limit: int) -> list[tuple[int, str]]:
    """Return (id, name) of tenants by name, for a filter."""
    return list(Tenant.objects.order_by("name").values_list("pk", "name")[:limit])


def tenant_by_slug(slug: str) -> Tenant | None:
    return Tenant.objects.filter(slug=slug).first()
