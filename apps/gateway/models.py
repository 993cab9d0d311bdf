"""What the doors remember of requests that named themselves. Ids and no foreign keys: a row lives
for a day and holds nothing else up."""

from django.db import models

from apps.core.tenant_rows import TenantRows


class IdempotentRequest(TenantRows):
    """A request that came with an ``Idempotency-Key``, and its answer once there is one.

    api_token_id, user_id: who asked; 0 for what they are not, because to a unique constraint no
    NULL is another's equal. owner: the one run of it; a run whose lease is over may not write.
    """

    class State(models.TextChoices):
        RUNNING = "running", "Running"
        KEPT = "kept", "Answered"
        TOO_LARGE = "too_large", "Answered, too large to keep"

    owner_paths = ("tenant_id",)

    tenant_id = models.BigIntegerField()
    api_token_id = models.BigIntegerField(default=0)
    user_id = models.BigIntegerField(default=0)
    key = models.CharField(max_length=255)
    fingerprint = models.CharField(
        max_length=64, help_text="SHA-256 of method, path and body; of the request nothing is kept."
    )
    owner = models.CharField(max_length=64)
    state = models.CharField(max_length=10, choices=State.choices, default=State.RUNNING)
    lease_until = models.DateTimeField(help_text="A run that has not ended then is dead.")
    status = models.PositiveSmallIntegerField(null=True, blank=True)
    headers = models.JSONField(default=dict, blank=True)
    body = models.BinaryField(default=b"")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant_id", "api_token_id", "user_id", "key"],
                name="idempotent_caller_key_uniq",
            ),
            models.CheckConstraint(
                condition=~models.Q(state="kept") | models.Q(status__isnull=False),
                name="idempotent_kept_whole",
            ),
        ]

    def __str__(self) -> str:
        return self.key
