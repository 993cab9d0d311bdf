"""The catalogue of model artifacts: what there is on disk, and how to know it is unaltered."""

from django.core.validators import RegexValidator
from django.db import models

from apps.core.models import TimestampedModel
from apps.registry.types import EMBEDDING_ARCHITECTURES, Task


class RegisteredModel(TimestampedModel):
    name = models.CharField(
        max_length=120,
        unique=True,
        # Also a directory's name: it starts with a letter or digit and holds no separator.
        validators=[
            RegexValidator(r"^[A-Za-z0-9][A-Za-z0-9._-]*$", "Use letters, digits and . _ - only.")
        ],
    )
    description = models.TextField(blank=True)

    class Meta:
        ordering = ["name"]
        verbose_name = "registered model"

    def __str__(self) -> str:
        return self.name


class ModelVersion(TimestampedModel):
    """One imported artifact. Its files never change; the manifest holds the SHA-256 of each."""

    model = models.ForeignKey(RegisteredModel, on_delete=models.PROTECT, related_name="versions")
    version = models.PositiveIntegerField()
    source = models.CharField(max_length=300, help_text="File or directory it was imported from.")
    source_sha256 = models.CharField(max_length=64, editable=False)
    path = models.CharField(max_length=300, editable=False, help_text="Below the models directory.")
    architecture = models.CharField(max_length=80, editable=False)
    n_parameters = models.PositiveBigIntegerField(editable=False)
    context_length = models.PositiveIntegerField(editable=False)
    vocab_size = models.PositiveIntegerField(editable=False)
    dtype = models.CharField(max_length=20, editable=False)
    license = models.CharField(max_length=120, blank=True)
    size_bytes = models.PositiveBigIntegerField(editable=False)
    manifest = models.JSONField(editable=False)
    manifest_sha256 = models.CharField(max_length=64, editable=False)

    class Meta:
        ordering = ["model", "-version"]
        constraints = [
            models.UniqueConstraint(fields=["model", "version"], name="modelversion_number_uniq"),
            models.CheckConstraint(condition=models.Q(version__gte=1), name="modelversion_from_1"),
        ]

    def __str__(self) -> str:
        return f"{self.model} v{self.version}"

    @property
    def task(self) -> Task:
        """What an engine of it does."""
        return "embed" if self.architecture in EMBEDDING_ARCHITECTURES else "generate"
