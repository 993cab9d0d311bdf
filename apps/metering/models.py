"""The usage ledger: one row per request, reserved before dispatch and settled once; and the meters
that its rows move. They store ids and names and have no foreign keys, so that they outlive what
they speak of."""

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
    meter_ids = models.JSONField(default=list, help_text="The meters that hold the reservation.")
    n_charged_tokens = models.PositiveIntegerField(default=0)
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


class Meter(models.Model):
    """What one scope (a tenant, a key, an end user) has used and holds within one period: tokens of
    a day or a month, or requests that are open. Moved only by ``metering.meters``."""

    scope = models.CharField(max_length=80)
    period = models.CharField(max_length=16)
    n_used = models.PositiveBigIntegerField(default=0)
    n_held = models.PositiveBigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["scope", "period"], name="meter_scope_period_uniq")
        ]

    def __str__(self) -> str:
        return f"{self.scope} {self.period}"
