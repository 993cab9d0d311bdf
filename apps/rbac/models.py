"""Who may come in, and what they may do: people, their roles, and API tokens of programs."""

from typing import Any

from django.conf import settings
from django.contrib.auth.models import AbstractUser
from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from apps.core.access import Access
from apps.core.limits import LimitFields
from apps.core.models import TimestampedModel
from apps.core.tenant_rows import TenantRows
from apps.rbac.permissions import access_of
from apps.rbac.types import DEFAULT_SCOPES, JWT_ALGORITHM, SCOPES, networks_of


class User(AbstractUser):
    """A person, or a service account: a member of a tenant that never signs in and owns tokens."""

    is_service = models.BooleanField(
        "service account",
        default=False,
        editable=False,
        help_text="Has no password; programs use its tokens.",
    )

    @property
    def access(self) -> Access:
        """What they hold, read once for as long as this instance is kept: a request."""
        if not hasattr(self, "_access"):
            self._access = access_of(self)
        return self._access

    def refresh_from_db(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__.pop("_access", None)
        super().refresh_from_db(*args, **kwargs)


class Role(TimestampedModel):
    """A named set of permissions. Those that come with the platform stay as they are."""

    name = models.CharField(max_length=60, unique=True)
    slug = models.SlugField(max_length=60, unique=True)
    description = models.CharField(max_length=300, blank=True)
    is_builtin = models.BooleanField(default=False, editable=False)
    permissions = models.ManyToManyField("auth.Permission", blank=True, related_name="roles")

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class GroupMapping(TenantRows, TimestampedModel):
    """Whoever is in a group of the single sign-on provider has a role: everywhere, or in one
    tenant as a member. It is made and deleted, never changed."""

    group = models.CharField(max_length=200, help_text="As the provider names it, to the letter.")
    role = models.ForeignKey(Role, on_delete=models.PROTECT, related_name="group_mappings")
    tenant = models.ForeignKey(
        "tenants.Tenant",
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="group_mappings",
        help_text="Where the role is good. Empty: everywhere.",
    )
    made_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        editable=False,
    )

    class Meta:
        ordering = ["group", "id"]
        default_permissions = ("view", "add", "delete")
        constraints = [
            models.UniqueConstraint(
                fields=["group", "role", "tenant"], name="groupmapping_group_role_tenant_uniq"
            ),
            models.UniqueConstraint(
                fields=["group", "role"],
                condition=models.Q(tenant=None),
                name="groupmapping_group_role_uniq",
            ),
        ]

    def __str__(self) -> str:
        place = f"in {self.tenant}" if self.tenant is not None else "everywhere"
        return f"{self.group}: {self.role} {place}"


class RoleGrant(TenantRows, TimestampedModel):
    """Somebody has a role: everywhere (``user``), or in one tenant while they are a member of it
    (``membership``). What came by a group goes with it; what was given by hand stays, so that
    there may be both."""

    owner_paths = ("membership", "membership__tenant", "user")

    role = models.ForeignKey(Role, on_delete=models.PROTECT, related_name="grants")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="role_grants",
    )
    membership = models.ForeignKey(
        "tenants.Membership",
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="role_grants",
    )
    granted_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        editable=False,
    )
    mapping = models.ForeignKey(
        GroupMapping,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="grants",
        editable=False,
        verbose_name="by group",
    )

    class Meta:
        ordering = ["id"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(user=None) ^ models.Q(membership=None),
                name="rolegrant_user_or_membership",
            ),
            *(
                models.UniqueConstraint(
                    fields=[holder, "role"],
                    condition=models.Q(mapping=None),
                    name=f"rolegrant_{holder}_role_uniq",
                )
                for holder in ("user", "membership")
            ),
            *(
                models.UniqueConstraint(
                    fields=[holder, "mapping"], name=f"rolegrant_{holder}_mapping_uniq"
                )
                for holder in ("user", "membership")
            ),
        ]

    def __str__(self) -> str:
        place = f"in {self.membership.tenant}" if self.membership is not None else "everywhere"
        return f"{self.role} of {self.holder} {place}"

    @property
    def holder(self) -> User:
        user: User | None = self.user if self.membership is None else self.membership.user
        assert user is not None  # by the constraint
        return user

    @property
    def tenant_id(self) -> int | None:
        """The tenant that it is good in; None is everywhere."""
        return None if self.membership is None else self.membership.tenant_id


def default_scopes() -> list[str]:
    return list(DEFAULT_SCOPES)


all_scopes = default_scopes  # as a migration calls it


def validate_scopes(value: Any) -> None:
    known = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if not known or not value or set(value) - set(SCOPES):
        raise ValidationError(f"A list of one or more of: {', '.join(SCOPES)}.")


def validate_networks(value: str) -> None:
    try:
        networks_of(value)
    except ValueError as error:
        raise ValidationError(f"Not an address or a network: {error}.") from error


class ApiToken(TenantRows, TimestampedModel, LimitFields):
    """A secret shown once. Only a lookup prefix and the SHA-256 of the whole are kept; the secret
    is 256 random bits, so a slow hash would protect nothing. Its limits hold beside its
    tenant's."""

    tenant = models.ForeignKey(
        "tenants.Tenant", on_delete=models.CASCADE, related_name="api_tokens"
    )
    name = models.CharField(max_length=120)
    prefix = models.CharField(max_length=16, unique=True, editable=False)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        editable=False,
    )
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="api_tokens",
        help_text="Whose token it is: it never does more than they may. Empty: the tenant's own.",
    )
    scopes = models.JSONField(default=default_scopes, validators=[validate_scopes])
    allowed_networks = models.TextField(
        blank=True,
        validators=[validate_networks],
        help_text="Addresses or networks such as 192.0.2.0/24, one a line. Empty: from anywhere.",
    )
    replaces = models.ForeignKey(
        "self",
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="replacements",
        editable=False,
    )
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Empty: never expires.")
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["-id"]
        verbose_name = "API token"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @property
    def is_live(self) -> bool:
        return self.revoked_at is None and (
            self.expires_at is None or self.expires_at > timezone.now()
        )


class JwtKey(TimestampedModel):
    """A pair of keys that signs JWTs, or did. The private half is sealed with the secret key of the
    installation, so that a copy of the database alone signs nothing."""

    kid = models.CharField(max_length=64, unique=True, editable=False)
    algorithm = models.CharField(max_length=16, default=JWT_ALGORITHM, editable=False)
    public_x = models.CharField(max_length=64, editable=False)
    private_sealed = models.TextField(editable=False)
    verifies_until = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="Empty: it signs."
    )

    class Meta:
        ordering = ["-id"]
        verbose_name = "JWT key"
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["algorithm"],
                condition=models.Q(verifies_until=None),
                name="jwtkey_one_signs",
            ),
        ]

    def __str__(self) -> str:
        return self.kid


class TokenFamily(TenantRows, TimestampedModel):
    """The JWTs that came of one exchange of an API token. Of its refresh tokens one is good, the
    last; whoever shows another has a copy of what was used, and ends them all."""

    owner_paths = ("api_token", "api_token__tenant")

    public_id = models.CharField(max_length=64, unique=True, editable=False)
    api_token = models.ForeignKey(
        ApiToken, on_delete=models.CASCADE, related_name="families", editable=False
    )
    scopes = models.JSONField(validators=[validate_scopes], editable=False)
    refresh_jti = models.CharField(max_length=64, editable=False)
    expires_at = models.DateTimeField(db_index=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["-id"]
        verbose_name = "token family"
        verbose_name_plural = "token families"
        default_permissions = ()
        indexes = [models.Index(fields=["api_token", "expires_at"], name="tokenfamily_of_token")]

    def __str__(self) -> str:
        return self.public_id

    @property
    def tenant_id(self) -> int:
        return self.api_token.tenant_id

    @property
    def is_live(self) -> bool:
        return (
            self.revoked_at is None and self.expires_at > timezone.now() and self.api_token.is_live
        )
