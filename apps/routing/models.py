"""Public model names and where their traffic goes."""

from typing import Final

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from guardian.models import UserObjectPermissionBase

from apps.core.models import TimestampedModel
from apps.routing.defaults import defaults_problems

MAX_WEIGHT: Final = 1000
_NAME: Final = RegexValidator(
    r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", "Use letters, digits and . _ : / - only."
)


class Route(TimestampedModel):
    """A name that clients put in ``model``; it leads to deployments."""

    name = models.CharField(
        max_length=120,
        unique=True,
        validators=[_NAME],
        help_text="What clients put in the field “model”.",
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
    defaults = models.JSONField(
        default=dict,
        db_default={},
        blank=True,
        help_text="What holds where a request says nothing, by the names of its fields.",
    )
    tenants = models.ManyToManyField("tenants.Tenant", blank=True, related_name="routes")
    held_by = models.CharField(
        max_length=60,
        blank=True,
        db_default="",
        editable=False,
        help_text="What alone may change where it leads, such as a rollout.",
    )

    class Meta:
        ordering = ["name"]
        permissions = [("use_route", "Can send requests to route")]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if problems := defaults_problems(self.defaults):
            raise ValidationError({"defaults": problems})


class RouteTarget(models.Model):
    """A deployment that a route leads to: for its weight's share of the requests, or as one of the
    chain that is asked where no deployment with a weight can answer. With neither it is named, and
    asked for nothing."""

    route = models.ForeignKey(Route, on_delete=models.CASCADE, related_name="targets")
    deployment = models.ForeignKey(
        "deployments.Deployment", on_delete=models.PROTECT, related_name="route_targets"
    )
    weight = models.PositiveSmallIntegerField(
        default=0,
        validators=[MaxValueValidator(MAX_WEIGHT)],
        help_text="Its share among the weights of all. 0: no share.",
    )
    fallback_order = models.PositiveSmallIntegerField(
        "fallback",
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Its place in the chain of those that are asked on overload or failure.",
    )
    arm = models.CharField(
        max_length=60,
        blank=True,
        db_default="",
        editable=False,
        help_text="What the ledger says of its requests, for the rollout that holds the route.",
    )

    class Meta:
        ordering = [models.F("fallback_order").asc(nulls_first=True), "-weight", "id"]
        default_permissions = ()  # who may change the route changes where it leads
        constraints = [
            models.UniqueConstraint(fields=["route", "deployment"], name="route_target_uniq"),
            models.UniqueConstraint(
                fields=["route", "fallback_order"], name="route_fallback_order_uniq"
            ),
            models.CheckConstraint(
                condition=models.Q(weight=0) | models.Q(fallback_order=None),
                name="route_target_one_way",
                violation_error_message="Give either a weight or a place among the fallbacks.",
            ),
            models.CheckConstraint(
                condition=models.Q(weight__lte=MAX_WEIGHT), name="route_target_weight_bound"
            ),
        ]

    def __str__(self) -> str:
        return str(self.route)


class RouteAlias(models.Model):
    """A further public name of a route. That no route has it, the services see to."""

    route = models.ForeignKey(Route, on_delete=models.CASCADE, related_name="aliases")
    name = models.CharField(max_length=120, unique=True, validators=[_NAME])

    class Meta:
        ordering = ["name"]
        default_permissions = ()

    def __str__(self) -> str:
        return self.name


class RouteUserObjectPermission(UserObjectPermissionBase):
    """What a person may do with one route. It goes with the route, and with the person."""

    content_object = models.ForeignKey(Route, on_delete=models.CASCADE)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
