"""Who the platform serves: tenants and the people in them."""

from django.conf import settings
from django.db import models

from apps.core.models import TimestampedModel


class Tenant(TimestampedModel):
    """A customer or team; every token, request and ledger row belongs to one."""

    name = models.CharField(max_length=120, unique=True)
    slug = models.SlugField(max_length=60, unique=True)
    is_active = models.BooleanField(
        default=True, help_text="When off, every token of the tenant is refused."
    )
    cache_salt = models.CharField(
        max_length=64,
        editable=False,
        help_text="Seeds the prefix cache, so that tenants cannot time each other's prompts.",
    )

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Membership(TimestampedModel):
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships"
    )

    class Meta:
        ordering = ["tenant", "user"]
        constraints = [
            models.UniqueConstraint(fields=["tenant", "user"], name="membership_tenant_user_uniq")
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.tenant}"
