"""Public model names and where their traffic goes."""

from django.conf import settings
from django.core.validators import RegexValidator
from django.db import models
from guardian.models import UserObjectPermissionBase

from apps.core.models import TimestampedModel


class Route(TimestampedModel):
    """A name that clients put in ``model``; it leads to a deployment."""

    name = models.CharField(
        max_length=120,
        unique=True,
        validators=[
            RegexValidator(
                r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", "Use letters, digits and . _ : / - only."
            )
        ],
        help_text="What clients put in the field “model”.",
    )
    deployment = models.ForeignKey(
        "deployments.Deployment", on_delete=models.PROTECT, related_name="routes"
    )
    is_active = models.BooleanField(default=True)
    description = models.CharField(max_length=300, blank=True)
    is_restricted = models.BooleanField(
        "only for some",
        default=False,
        help_text="For the tenants below and people who were given it; for others it is not there.",
    )
    caches_responses = models.BooleanField(
        "keeps answers",
        default=False,
        help_text="Equal requests of one tenant get a kept answer, which costs nothing.",
    )
    tenants = models.ManyToManyField("tenants.Tenant", blank=True, related_name="routes")

    class Meta:
        ordering = ["name"]
        permissions = [("use_route", "Can send requests to route")]

    def __str__(self) -> str:
        return self.name


class RouteUserObjectPermission(UserObjectPermissionBase):
    """What a person may do with one route. It goes with the route, and with the person."""

    content_object = models.ForeignKey(Route, on_delete=models.CASCADE)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
