"""What should run (Deployment) and what runs (Replica)."""

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from guardian.models import UserObjectPermissionBase

from apps.core.models import TimestampedModel


class Deployment(TimestampedModel):
    """Desired state of one model version on this node."""

    class DesiredState(models.TextChoices):
        RUNNING = "running", "Running"
        STOPPED = "stopped", "Stopped"

    class Dtype(models.TextChoices):
        AUTO = "auto", "Best for this machine"
        BFLOAT16 = "bfloat16", "bfloat16"
        FLOAT32 = "float32", "float32"

    name = models.SlugField(max_length=60, unique=True)
    model_version = models.ForeignKey(
        "registry.ModelVersion", on_delete=models.PROTECT, related_name="deployments"
    )
    desired_state = models.CharField(
        max_length=8, choices=DesiredState.choices, default=DesiredState.RUNNING
    )
    n_replicas = models.PositiveSmallIntegerField(
        default=1, validators=[MinValueValidator(1), MaxValueValidator(16)]
    )
    dtype = models.CharField(max_length=10, choices=Dtype.choices, default=Dtype.AUTO)
    kv_cache_tokens = models.PositiveIntegerField(
        default=32768,
        validators=[MinValueValidator(256)],
        help_text="Tokens that all running requests together may hold.",
    )
    max_sequences = models.PositiveIntegerField(
        default=64, validators=[MinValueValidator(1)], help_text="Requests in one step at most."
    )
    max_batched_tokens = models.PositiveIntegerField(
        default=512, validators=[MinValueValidator(16)], help_text="Tokens in one step at most."
    )
    max_model_len = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(16)],
        help_text="Prompt and answer together at most. Empty: what the model allows.",
    )
    generation = models.PositiveIntegerField(
        default=1,
        editable=False,
        help_text="Raised by every change that an engine must be started anew for.",
    )

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(n_replicas__gte=1) & models.Q(n_replicas__lte=16),
                name="deployment_replicas_1_to_16",
            )
        ]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Refuse what an engine would refuse at its start, while somebody is there to read it."""
        errors: dict[str, str] = {}
        if self.max_batched_tokens < self.max_sequences:
            errors["max_batched_tokens"] = (
                f"At least {self.max_sequences}, so that every request of a step gets a token."
            )
        if self.max_model_len is not None:
            if self.max_model_len > self.kv_cache_tokens:
                errors["max_model_len"] = (
                    f"At most the {self.kv_cache_tokens} tokens that may be held in all."
                )
            elif (
                self.model_version_id is not None
                and self.max_model_len > self.model_version.context_length
            ):
                errors["max_model_len"] = (
                    f"At most the {self.model_version.context_length} tokens that the model allows."
                )
        if errors:
            raise ValidationError(errors)


class DeploymentUserObjectPermission(UserObjectPermissionBase):
    """What a person may do with one deployment. It goes with the deployment, and the person."""

    content_object = models.ForeignKey(Deployment, on_delete=models.CASCADE)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")


class Replica(TimestampedModel):
    """One running copy; made and removed by the engine agent, never by hand."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="replicas")
    index = models.PositiveSmallIntegerField()
    engine_process = models.OneToOneField(
        "engines.EngineProcess", on_delete=models.CASCADE, related_name="replica"
    )

    class Meta:
        ordering = ["deployment", "index"]
        constraints = [
            models.UniqueConstraint(fields=["deployment", "index"], name="replica_index_uniq")
        ]

    def __str__(self) -> str:
        return f"{self.deployment}/{self.index}"
