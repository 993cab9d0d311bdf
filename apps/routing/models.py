"""Public model names and where their traffic goes."""

from django.core.validators import RegexValidator
from django.db import models

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

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name
