"""The record of administrative changes. It stores ids and labels and has no foreign keys, so that
what it says outlives what it speaks of."""

from django.db import models

from apps.core.tenant_rows import TenantRows


class AuditEvent(TenantRows):
    """One change, written in the transaction that made it; never changed afterwards."""

    class ActorKind(models.TextChoices):
        USER = "user", "User"
        TOKEN = "token", "API token"
        SYSTEM = "system", "System"

    owner_paths = ("tenant_id",)

    at = models.DateTimeField(auto_now_add=True, db_index=True)
    actor_kind = models.CharField(max_length=8, choices=ActorKind.choices)
    actor_id = models.BigIntegerField(null=True, blank=True)
    actor_label = models.CharField(max_length=200)
    ip_address = models.GenericIPAddressField(null=True, blank=True)
    tenant_id = models.BigIntegerField(null=True, blank=True, db_index=True)
    action = models.CharField(max_length=80, db_index=True)
    object_type = models.CharField(max_length=80, blank=True)
    object_id = models.CharField(max_length=64, blank=True)
    object_label = models.CharField(max_length=200, blank=True)
    changes = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["object_type", "object_id"], name="audit_object_idx")]

    def __str__(self) -> str:
        return f"{self.action} {self.object_label}".strip()

    @property
    def action_text(self) -> str:
        """The action in words: ``api_token.revoked`` is "API token revoked"."""
        words = self.action.replace(".", " ").replace("_", " ")
        return words.replace("api ", "API ", 1) if words.startswith("api ") else words.capitalize()
