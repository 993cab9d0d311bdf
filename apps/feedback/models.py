"""What clients say of answers, and numbers that their programs report. Like the ledger's, its rows
store ids and names and have no foreign keys."""

from django.db import models
from django.db.models import Q

from apps.core.tenant_rows import TenantRows
from apps.feedback.types import (
    FEEDBACK,
    MAX_COMMENT_CHARS,
    MAX_END_USER_CHARS,
    MAX_EVENT_ID_CHARS,
    MAX_NAME_CHARS,
    MOST_VALUE,
    Rating,
)


class MetricEvent(TenantRows):
    """A number about a request, or about an end user. The arms are copied from the request's row in
    the ledger. Feedback is one row a request, and changes with the mind of who gave it; other
    events never change.

    is_in_…: whoever compares has counted it as it stands. value_in_…: what they have counted; with
    the flag off, the value takes its place. Moved only by ``feedback.services``.
    """

    owner_paths = ("tenant_id",)

    tenant_id = models.BigIntegerField()
    request_id = models.CharField(
        max_length=64, blank=True, help_text="Of the row in the ledger that answered."
    )
    end_user = models.CharField(
        max_length=MAX_END_USER_CHARS, blank=True, help_text="Whom the tenant serves."
    )
    name = models.CharField(max_length=MAX_NAME_CHARS)
    value = models.FloatField()
    comment = models.CharField(max_length=MAX_COMMENT_CHARS, blank=True)
    event_id = models.CharField(
        max_length=MAX_EVENT_ID_CHARS, blank=True, help_text="The client's own; told once."
    )
    created_at = models.DateTimeField()
    api_token_id = models.BigIntegerField(null=True, blank=True)
    user_id = models.BigIntegerField(null=True, blank=True)
    experiment_arm = models.CharField(max_length=250, blank=True)
    rollout_arm = models.CharField(max_length=250, blank=True)
    is_in_experiments = models.BooleanField(default=False)
    is_in_rollout = models.BooleanField(default=False)
    value_in_experiments = models.FloatField(null=True, blank=True)
    value_in_rollout = models.FloatField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        verbose_name = "feedback or event"
        verbose_name_plural = "feedback and events"
        default_permissions = ("view",)
        indexes = [
            models.Index(fields=["tenant_id", "-id"], name="metric_event_tenant_idx"),
            models.Index(fields=["request_id"], name="metric_event_request_idx"),
            models.Index(fields=["tenant_id", "end_user"], name="metric_event_end_user_idx"),
            models.Index(
                fields=["id"],
                condition=Q(is_in_experiments=False)
                & (Q(experiment_arm__gt="") | Q(request_id="")),
                name="metric_event_experiment_idx",
            ),
            models.Index(
                fields=["id"],
                condition=Q(is_in_rollout=False) & Q(rollout_arm__gt=""),
                name="metric_event_rollout_idx",
            ),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant_id", "request_id"],
                condition=Q(name=FEEDBACK),
                name="metric_event_feedback_uniq",
            ),
            models.UniqueConstraint(
                fields=["tenant_id", "event_id"],
                condition=Q(event_id__gt=""),
                name="metric_event_id_uniq",
            ),
            models.CheckConstraint(
                condition=Q(value__gte=-MOST_VALUE, value__lte=MOST_VALUE),
                name="metric_event_value_bound",
            ),
            models.CheckConstraint(
                condition=~Q(name=FEEDBACK) | (Q(request_id__gt="") & Q(value__in=(0.0, 1.0))),
                name="metric_event_feedback_whole",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} of {self.request_id or self.end_user}"

    @property
    def said(self) -> str:
        """The value for people."""
        if self.name == FEEDBACK:
            return "Thumbs up" if Rating.of(self.value) is Rating.UP else "Thumbs down"
        return f"{self.value:,.0f}" if self.value.is_integer() else f"{self.value:,.6g}"
