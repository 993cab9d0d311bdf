"""Who the platform serves: tenants by plan, the people in them, and whom those serve."""

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from apps.core.limits import LimitFields
from apps.core.models import TimestampedModel
from apps.core.prices import PriceFields
from apps.core.tenant_rows import TenantRows


class Plan(TimestampedModel, LimitFields, PriceFields):
    """A tier: what a tenant may use, and what it pays."""

    name = models.CharField(max_length=60, unique=True)
    slug = models.SlugField(max_length=60, unique=True)
    weight = models.FloatField(
        default=1.0,
        validators=[MinValueValidator(0.01), MaxValueValidator(100.0)],
        help_text="Share of a busy engine, beside tenants of other plans.",
    )

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Tenant(TimestampedModel, LimitFields):
    """A customer or team; every token, request and ledger row belongs to one. Its own limits stand
    in place of its plan's."""

    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="tenants")

    name = models.CharField(max_length=120, unique=True)
    slug = models.SlugField(max_length=60, unique=True)
    is_active = models.BooleanField(
        default=True, help_text="When off, every token of the tenant is refused."
    )
    needs_second_person = models.BooleanField(
        "two persons for rollouts",
        default=False,
        db_default=False,
        help_text="Of routes that are for it: whoever starts a rollout cannot approve it.",
    )
    allows_judging = models.BooleanField(
        "answers may be judged",
        default=False,
        db_default=False,
        help_text="In experiments that a model judges, its answers and what was asked may be kept, "
        "sealed, until they are scored (a week at most); the judge's model reads them.",
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


class Membership(TenantRows, TimestampedModel):
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


class EndUser(TenantRows, TimestampedModel, LimitFields):
    """Whom a tenant's program serves, as it says in the field ``user`` of its requests. A row is
    needed only for limits of their own."""

    EVERYONE = "*"

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="end_users")
    identifier = models.CharField(
        max_length=512,
        help_text='What requests say in "user"; * for everyone without limits of their own.',
    )

    class Meta:
        ordering = ["tenant", "identifier"]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "identifier"], name="enduser_tenant_identifier_uniq"
            )
        ]

    def __str__(self) -> str:
        return f"{self.identifier} of {self.tenant}"
