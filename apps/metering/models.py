"""The usage ledger: one row per request, reserved before dispatch and settled once. It stores ids
and names and has no foreign keys, so that it outlives what it speaks of."""

from django.db import models
from django.db.models import Q


class UsageRecord(models.Model):
    class State(models.TextChoices):
        RESERVED = "reserved", "Reserved"
        SETTLED = "settled", "Settled"

    class Outcome(models.TextChoices):
        COMPLETED = "completed", "Completed"
        ABORTED = "aborted", "Aborted by the client"
        FAILED = "failed", "Failed"
        INTERRUPTED = "interrupted", "Interrupted"

    request_id = models.CharField(max_length=64, unique=True)
    tenant_id = models.BigIntegerField()
    api_token_id = models.BigIntegerField(null=True, blank=True)
    user_id = models.BigIntegerField(null=True, blank=True)
    door = models.CharField(max_length=16)
    endpoint = models.CharField(max_length=40)
    route_name = models.CharField(max_length=120)
    deployment_id = models.BigIntegerField()
    model_version_id = models.BigIntegerField()
    engine_name = models.CharField(max_length=120)
    engine_epoch = models.PositiveBigIntegerField()
    state = models.CharField(max_length=10, choices=State.choices, default=State.RESERVED)
    outcome = models.CharField(max_length=12, choices=Outcome.choices, blank=True)
    finish_reason = models.CharField(max_length=16, blank=True)
    error_code = models.CharField(max_length=60, blank=True)
    n_prompt_tokens = models.PositiveIntegerField()
    n_reserved_tokens = models.PositiveIntegerField(
        help_text="Prompt and the most the engine may produce."
    )
    n_cached_tokens = models.PositiveIntegerField(default=0)
    n_completion_tokens = models.PositiveIntegerField(default=0)
    ttft_ms = models.FloatField(null=True, blank=True)
    total_ms = models.FloatField(null=True, blank=True)
    created_at = models.DateTimeField(db_index=True)
    expires_at = models.DateTimeField(help_text="A row still reserved then is an orphan.")
    settled_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        verbose_name = "usage record"
        indexes = [
            models.Index(fields=["tenant_id", "-id"], name="usage_tenant_idx"),
            models.Index(
                fields=["expires_at"], condition=Q(state="reserved"), name="usage_open_idx"
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(state="reserved", settled_at=None)
                | (Q(state="settled", settled_at__isnull=False) & ~Q(outcome="")),
                name="usage_settled_whole",
            ),
        ]

    def __str__(self) -> str:
        return self.request_id
