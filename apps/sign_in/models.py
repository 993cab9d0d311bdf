"""What the platform keeps of how a person signs in, beside the devices of ``django_otp`` and the
counts of ``axes``."""

from typing import TYPE_CHECKING

from axes.models import AccessAttempt
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import models
from django.utils import timezone

from apps.core.models import TimestampedModel

if TYPE_CHECKING:
    from apps.rbac.models import User
else:
    User = get_user_model()


class SignInState(models.Model):
    """One row a person, made when there is something to say. Sessions carry the epoch that they
    began in: raising it ends all of them, wherever they are stored."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        primary_key=True,
        related_name="sign_in_state",
    )
    session_epoch = models.PositiveIntegerField(default=0)
    is_two_factor_required = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"Sign-in of {self.user}"


class ProviderIdentity(TimestampedModel):
    """Whom the single sign-on provider knows as a subject. Names and addresses may pass from one
    person to another there; a subject never does. seen_at: when the provider last vouched for them,
    and said their groups."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="provider_identities"
    )
    issuer = models.CharField(max_length=500)
    subject = models.CharField(max_length=255)
    seen_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        ordering = ["id"]
        verbose_name_plural = "provider identities"
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["issuer", "subject"], name="provideridentity_uniq"),
            models.UniqueConstraint(fields=["user", "issuer"], name="provideridentity_user_uniq"),
        ]

    def __str__(self) -> str:
        return f"{self.subject} at {self.issuer}"


class Person(User):
    """A user as the pages about signing in see them."""

    class Meta:
        proxy = True
        ordering = ["username"]
        verbose_name = "person"
        verbose_name_plural = "sign-in"


class FailedSignIn(AccessAttempt):  # type: ignore[misc]
    """Failed attempts with one name from one address and browser, while they still count."""

    class Meta:
        proxy = True
        ordering = ["-attempt_time", "-id"]
        verbose_name = "failed sign-in"
