"""Files that clients store here, batches of requests, and a row for each request of a batch. These
rows are the truth about a batch; a message to a worker only wakes it."""

from django.db import models
from django.db.models import Q
from django.utils import timezone

from apps.core.models import TimestampedModel
from apps.core.tenant_rows import TenantRows


class UploadedFile(TenantRows, TimestampedModel):
    """A file of a tenant's. Its bytes lie under FILES_DIR by the name of its id."""

    class Purpose(models.TextChoices):
        BATCH = "batch", "Batch input"
        BATCH_OUTPUT = "batch_output", "Batch output"

    file_id = models.CharField(max_length=64, unique=True, editable=False)
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    filename = models.CharField(max_length=255)
    purpose = models.CharField(max_length=20, choices=Purpose.choices)
    size_bytes = models.PositiveBigIntegerField()

    class Meta:
        ordering = ["-id"]
        verbose_name = "file"
        indexes = [models.Index(fields=["tenant", "-id"], name="file_tenant_idx")]

    def __str__(self) -> str:
        return f"{self.filename} ({self.file_id})"


class Batch(TenantRows, TimestampedModel):
    """Requests to answer within a day. ``lease_owner`` names the worker that has it in hand; one
    whose lease is over is anybody's."""

    class Status(models.TextChoices):
        VALIDATING = "validating", "Validating"
        IN_PROGRESS = "in_progress", "In progress"
        FINALIZING = "finalizing", "Finalizing"
        CANCELLING = "cancelling", "Cancelling"
        COMPLETED = "completed", "Completed"
        FAILED = "failed", "Failed"
        EXPIRED = "expired", "Expired"
        CANCELLED = "cancelled", "Cancelled"

    OPEN = (Status.VALIDATING, Status.IN_PROGRESS, Status.FINALIZING, Status.CANCELLING)

    batch_id = models.CharField(max_length=64, unique=True, editable=False)
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    api_token_id = models.BigIntegerField(help_text="In whose name its requests run.")
    family_id = models.BigIntegerField(
        null=True, blank=True, help_text="Of the JWT that it was made with."
    )
    endpoint = models.CharField(max_length=40)
    input_file_id = models.CharField(max_length=64, db_index=True)
    output_file_id = models.CharField(max_length=64, blank=True)
    error_file_id = models.CharField(max_length=64, blank=True)
    metadata = models.JSONField(null=True, blank=True)
    errors = models.JSONField(default=list, blank=True)
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.VALIDATING)
    n_total = models.PositiveIntegerField(default=0)
    n_completed = models.PositiveIntegerField(default=0)
    n_failed = models.PositiveIntegerField(default=0)
    expires_at = models.DateTimeField()
    in_progress_at = models.DateTimeField(null=True, blank=True)
    finalizing_at = models.DateTimeField(null=True, blank=True)
    cancelling_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True, db_index=True)
    lease_owner = models.CharField(max_length=120, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    served_at = models.DateTimeField(
        default=timezone.now, help_text="When a worker last took it; who waited longest is next."
    )

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "batches"
        indexes = [
            models.Index(fields=["tenant", "-id"], name="batch_tenant_idx"),
            models.Index(
                fields=["served_at"],
                condition=Q(status__in=("validating", "in_progress", "finalizing", "cancelling")),
                name="batch_open_idx",
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(n_total__gte=models.F("n_completed") + models.F("n_failed")),
                name="batch_counts_add_up",
            )
        ]

    def __str__(self) -> str:
        return self.batch_id

    @property
    def is_open(self) -> bool:
        return self.status in self.OPEN


class BatchItem(TenantRows):
    """One line of a batch. A result is written once: under the attempt that took the line, while
    the line is still that attempt's."""

    class State(models.TextChoices):
        PENDING = "pending", "Pending"
        RUNNING = "running", "Running"
        DONE = "done", "Done"
        FAILED = "failed", "Failed"

    owner_paths = ("batch",)

    batch = models.ForeignKey(Batch, on_delete=models.CASCADE, related_name="items")
    line_no = models.PositiveIntegerField()
    custom_id = models.CharField(max_length=256)
    offset = models.PositiveBigIntegerField()
    n_bytes = models.PositiveIntegerField()
    state = models.CharField(max_length=8, choices=State.choices, default=State.PENDING)
    attempt = models.PositiveIntegerField(default=0)
    response = models.TextField(blank=True, help_text="JSON, as it goes into the result's line.")

    class Meta:
        ordering = ["batch", "line_no"]
        indexes = [models.Index(fields=["batch", "state", "line_no"], name="item_state_idx")]
        constraints = [
            models.UniqueConstraint(fields=["batch", "line_no"], name="item_line_uniq"),
            models.UniqueConstraint(fields=["batch", "custom_id"], name="item_custom_id_uniq"),
        ]

    def __str__(self) -> str:
        return f"{self.batch_id}:{self.line_no}"
