"""The catalogue of model artifacts: what there is on disk, how to know it is unaltered, and how far
each version has come."""

from typing import Final

from django.core.validators import MaxLengthValidator, RegexValidator
from django.db import models
from django.db.models import Q

from apps.core.models import TimestampedModel
from apps.registry.progress import import_progress
from apps.registry.types import (
    EMBEDDING_ARCHITECTURES,
    Lineage,
    Stage,
    Task,
    VerificationStatus,
    VerificationStep,
)

MAX_CARD_CHARS: Final = 256 * 1024
# Also a directory's name: it starts with a letter or digit and holds no separator.
_NAME_VALIDATOR = RegexValidator(
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$", "Use letters, digits and . _ - only."
)


class RegisteredModel(TimestampedModel):
    name = models.CharField(max_length=120, unique=True, validators=[_NAME_VALIDATOR])
    description = models.TextField(blank=True)
    last_deleted = models.PositiveIntegerField(
        default=0,
        db_default=0,
        editable=False,
        help_text="The highest number of a version that was deleted: it is not given again.",
    )

    class Meta:
        ordering = ["name"]
        verbose_name = "registered model"

    def __str__(self) -> str:
        return self.name


class ModelVersion(TimestampedModel):
    """One imported artifact. Its files never change; the manifest holds the SHA-256 of each. What
    is said of it does, and its stage: by a move, whose row says who and why."""

    model = models.ForeignKey(RegisteredModel, on_delete=models.PROTECT, related_name="versions")
    version = models.PositiveIntegerField()
    source = models.CharField(max_length=300, help_text="File or directory it was imported from.")
    source_sha256 = models.CharField(max_length=64, editable=False)
    path = models.CharField(
        max_length=300,
        editable=False,
        help_text="Below the models directory, or in the artifact storage.",
    )
    architecture = models.CharField(max_length=80, editable=False)
    n_parameters = models.PositiveBigIntegerField(editable=False)
    context_length = models.PositiveIntegerField(editable=False)
    vocab_size = models.PositiveIntegerField(editable=False)
    dtype = models.CharField(max_length=20, editable=False)
    license = models.CharField(max_length=120, blank=True)
    size_bytes = models.PositiveBigIntegerField(editable=False)
    manifest = models.JSONField(editable=False)
    manifest_sha256 = models.CharField(max_length=64, editable=False)
    # Of files that are not at hand where pages are made and replicas are placed. None: imported
    # before this was kept; then the files say it, where they are at hand.
    shape = models.JSONField(null=True, editable=False)
    chat_template = models.TextField(null=True, editable=False)  # noqa: DJ001 - empty says none
    # Empty: in the same way, or the files say none.
    vocabulary_sha256 = models.CharField(
        max_length=64, blank=True, default="", db_default="", editable=False
    )
    # Processes of before a migration insert without these, hence the database's own defaults.
    stage = models.CharField(
        max_length=8,
        choices=Stage.choices,
        default=Stage.DRAFT,
        db_default=Stage.DRAFT.value,
        editable=False,
    )
    parent = models.ForeignKey(
        "self",
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="children",
        help_text="The version that it was made of.",
    )
    lineage = models.CharField(
        "made by", max_length=10, choices=Lineage.choices, blank=True, default="", db_default=""
    )
    model_card = models.TextField(
        blank=True,
        default="",
        db_default="",
        validators=[MaxLengthValidator(MAX_CARD_CHARS)],
        help_text="Markdown. What it is for, what it was trained on, where it fails.",
    )

    class Meta:
        ordering = ["model", "-version"]
        permissions = [("approve_modelversion", "Can approve a version for production")]
        constraints = [
            models.UniqueConstraint(fields=["model", "version"], name="modelversion_number_uniq"),
            models.CheckConstraint(condition=models.Q(version__gte=1), name="modelversion_from_1"),
            models.CheckConstraint(
                condition=Q(parent=None, lineage="") | Q(parent__isnull=False, lineage__gt=""),
                name="modelversion_parent_lineage",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model} v{self.version}"

    @property
    def task(self) -> Task:
        """What an engine of it does."""
        return "embed" if self.architecture in EMBEDDING_ARCHITECTURES else "generate"

    @property
    def tag_names(self) -> list[str]:
        return [tag.name for tag in self.tags.all()]


class LooseFolder(models.Model):
    """A folder of the artifact storage that no version has: it is being written, or is to go. The
    row is there before the first file and until the last one is gone, so that a sweeper finds
    whatever somebody who was killed has left, and touches nothing that is not listed here."""

    path = models.CharField(max_length=300, unique=True)
    is_going = models.BooleanField(default=False)
    left_alone_until = models.DateTimeField(db_index=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.path


class VersionTag(models.Model):
    """A word by which versions are found."""

    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="tags")
    name = models.CharField(
        max_length=40,
        db_index=True,
        validators=[
            RegexValidator(
                r"^[a-z0-9][a-z0-9._-]*$", "Use lower-case letters, digits and . _ - only."
            )
        ],
    )

    class Meta:
        ordering = ["name"]
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["version", "name"], name="versiontag_once")]

    def __str__(self) -> str:
        return self.name


class StageMove(models.Model):
    """One move of a version from stage to stage. It outlives who made it, hence the label."""

    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="moves")
    before = models.CharField(max_length=8, choices=Stage.choices)
    after = models.CharField(max_length=8, choices=Stage.choices)
    reason = models.CharField(max_length=500, blank=True)
    actor_label = models.CharField("by", max_length=200)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        default_permissions = ("view",)
        verbose_name = "move"

    def __str__(self) -> str:
        return f"{self.get_before_display()} → {self.get_after_display()}"


class VerificationRun(TimestampedModel):
    """One verification of a version. The row is the truth about it; a message to a worker only
    wakes it. ``lease_owner`` has it in hand; one whose lease is over is anybody's."""

    OPEN = (VerificationStatus.QUEUED, VerificationStatus.RUNNING)

    version = models.ForeignKey(
        ModelVersion, on_delete=models.CASCADE, related_name="verifications"
    )
    status = models.CharField(
        max_length=9, choices=VerificationStatus.choices, default=VerificationStatus.QUEUED
    )
    step = models.CharField(max_length=12, choices=VerificationStep.choices, blank=True)
    percent = models.PositiveSmallIntegerField(default=0)
    attempt = models.PositiveSmallIntegerField(default=0)
    is_cancel_asked = models.BooleanField(default=False)
    asked_by_kind = models.CharField(max_length=8)
    asked_by_id = models.BigIntegerField(null=True, blank=True)
    asked_by_label = models.CharField("asked by", max_length=200)
    lease_owner = models.CharField(max_length=120, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    checks = models.JSONField(default=list, blank=True)
    figures = models.JSONField(default=dict, blank=True)
    error = models.TextField(blank=True)
    log = models.TextField(blank=True, help_text="The end of the scratch engine's, if it failed.")
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        default_permissions = ("view", "add", "change")
        verbose_name = "verification"
        indexes = [
            models.Index(
                fields=["id"],
                condition=Q(status__in=("queued", "running")),
                name="verification_open_idx",
            )
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["version"],
                condition=Q(status__in=("queued", "running")),
                name="verification_one_open",
            )
        ]

    def __str__(self) -> str:
        return f"#{self.pk} of {self.version}"

    @property
    def is_open(self) -> bool:
        return self.status in self.OPEN


class ImportJob(TimestampedModel):
    """An artifact on its way into the registry. The row is the truth about it, a message to a
    worker only wakes it; ``lease_owner`` names the worker that has it in hand, and one whose lease
    is over is anybody's."""

    class Kind(models.TextChoices):
        ROOT = "root", "A file or folder on the server"
        UPLOAD = "upload", "An upload from this computer"
        COMMAND = "command", "The command line"

    class Status(models.TextChoices):
        UPLOADING = "uploading", "Uploading"
        QUEUED = "queued", "Queued"
        RUNNING = "running", "Running"
        CANCELLING = "cancelling", "Cancelling"
        DONE = "done", "Done"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"

    WORKED_ON = (Status.QUEUED, Status.RUNNING, Status.CANCELLING)
    OPEN = (Status.UPLOADING, *WORKED_ON)

    job_id = models.CharField(max_length=64, unique=True, editable=False)
    model_name = models.CharField(
        "model", max_length=120, validators=[_NAME_VALIDATOR], help_text="Made if there is none."
    )
    kind = models.CharField("source", max_length=8, choices=Kind.choices, default=Kind.ROOT)
    source = models.CharField("path", max_length=500, blank=True)
    expected_sha256 = models.CharField(
        "SHA-256",
        max_length=64,
        blank=True,
        validators=[RegexValidator(r"^[0-9a-f]{64}$", "Use 64 lower-case hexadecimal digits.")],
        help_text="If it is known: an artifact with another one is refused.",
    )
    size_bytes = models.PositiveBigIntegerField(default=0, editable=False)
    n_received_bytes = models.PositiveBigIntegerField(default=0, editable=False)
    source_sha256 = models.CharField(
        "SHA-256 of the source", max_length=64, blank=True, editable=False
    )
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.QUEUED)
    stage = models.CharField(max_length=20, blank=True, editable=False)
    stage_done = models.PositiveBigIntegerField(default=0, editable=False)
    stage_total = models.PositiveBigIntegerField(default=0, editable=False)
    n_attempts = models.PositiveIntegerField("attempts", default=0, editable=False)
    error = models.TextField(blank=True, editable=False)
    error_param = models.CharField(max_length=500, blank=True, editable=False)
    log = models.TextField(blank=True, editable=False)
    model_version = models.ForeignKey(
        ModelVersion, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    # As an audit event has them: kept when whoever it was is gone.
    actor_kind = models.CharField(max_length=10, editable=False)
    actor_id = models.BigIntegerField(null=True, editable=False)
    actor_label = models.CharField("asked by", max_length=200, editable=False)
    started_at = models.DateTimeField(null=True, blank=True, editable=False)
    ended_at = models.DateTimeField(null=True, blank=True, editable=False)
    lease_owner = models.CharField("worker", max_length=120, blank=True, editable=False)
    lease_until = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["-id"]
        verbose_name = "import"
        indexes = [
            models.Index(
                fields=["id"],
                condition=Q(status__in=("uploading", "queued", "running", "cancelling")),
                name="importjob_open_idx",
            )
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(n_received_bytes__lte=models.F("size_bytes")),
                name="importjob_received_fits",
            )
        ]

    def __str__(self) -> str:
        return f"{self.model_name} ({self.job_id[-8:]})"

    @property
    def is_open(self) -> bool:
        return self.status in self.OPEN

    @property
    def percent(self) -> int:
        """How far the stage is, or the upload."""
        if self.status == self.Status.UPLOADING:
            return 100 * self.n_received_bytes // max(1, self.size_bytes)
        return 100 * self.stage_done // max(1, self.stage_total)

    @property
    def progress(self) -> str:
        """What is being done with it, in words."""
        return import_progress(self)
