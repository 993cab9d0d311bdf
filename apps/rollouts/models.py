"""Traffic that moves stepwise from one deployment of a route to another, and what was observed on
the way."""

from django.conf import settings
from django.db import models
from django.db.models import Q

from apps.core.models import TimestampedModel


class Rollout(TimestampedModel):
    """A move of a route's traffic from its old deployment (the baseline) to a new one (the
    candidate). Names are kept beside the rows, which may be gone once it has ended.

    steps: [{"percent", "min_requests", "min_minutes"}, ...], the last at 100 percent.
    guardrails: [{"metric", "tolerance"}, ...], as ``rollouts.types`` reads both. targets_before:
    where the route led, [[deployment id, weight, fallback order], ...], for the way back.
    version: raised by every change; who changes it says which one they have seen.
    """

    class State(models.TextChoices):
        PENDING = "pending", "Waits for approval to start"
        RUNNING = "running", "Running"
        AWAITING = "awaiting", "Waits for approval"
        PAUSED = "paused", "Paused"
        COMPLETED = "completed", "Completed"
        ROLLED_BACK = "rolled_back", "Rolled back"
        ABORTED = "aborted", "Aborted"

    class Approval(models.TextChoices):
        AUTOMATIC = "automatic", "By itself"
        LAST = "last", "The last step waits for approval"
        EACH = "each", "Each step waits for approval"

    route = models.ForeignKey(
        "routing.Route", on_delete=models.SET_NULL, null=True, related_name="rollouts"
    )
    route_name = models.CharField(max_length=120)
    baseline = models.ForeignKey(
        "deployments.Deployment", on_delete=models.SET_NULL, null=True, related_name="+"
    )
    baseline_name = models.CharField(max_length=60)
    candidate = models.ForeignKey(
        "deployments.Deployment", on_delete=models.SET_NULL, null=True, related_name="+"
    )
    candidate_name = models.CharField(max_length=60)
    state = models.CharField(max_length=12, choices=State.choices, default=State.RUNNING)
    steps = models.JSONField()
    guardrails = models.JSONField()
    approval = models.CharField(
        "promotion", max_length=10, choices=Approval.choices, default=Approval.AUTOMATIC
    )
    needs_second_person = models.BooleanField(
        default=False, help_text="Whoever started it cannot approve it."
    )
    alpha = models.FloatField(
        "false alarms", default=0.05, help_text="Of rollouts of an equal version, at most."
    )
    step = models.PositiveSmallIntegerField(default=0, help_text="The index of the present one.")
    step_started_at = models.DateTimeField(null=True, blank=True)
    paused_from = models.CharField(max_length=12, blank=True, help_text="To be resumed to.")
    approved_step = models.SmallIntegerField(
        default=-1, help_text="Up to which step it was approved."
    )
    targets_before = models.JSONField(default=list)
    reason = models.CharField(
        max_length=500, blank=True, help_text="Why it is in its state, in words."
    )
    started_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    started_by_name = models.CharField(max_length=200, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    judged_at = models.DateTimeField(null=True, blank=True, help_text="By its controller, last.")
    lost_at = models.DateTimeField(
        null=True, blank=True, help_text="Since when the new version has no ready replica."
    )
    version = models.PositiveIntegerField(default=1)

    OPEN = (State.PENDING, State.RUNNING, State.AWAITING, State.PAUSED)

    class Meta:
        ordering = ["-id"]
        permissions = [("approve_rollout", "Can approve a rollout")]
        constraints = [
            models.UniqueConstraint(
                fields=["route"],
                condition=Q(state__in=("pending", "running", "awaiting", "paused")),
                name="rollout_open_uniq",
            ),
            models.CheckConstraint(
                condition=Q(state__in=("pending", "running", "awaiting", "paused"), ended_at=None)
                | Q(state__in=("completed", "rolled_back", "aborted"), ended_at__isnull=False),
                name="rollout_ended_whole",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.route_name}: {self.baseline_name} to {self.candidate_name}"


class RolloutTally(models.Model):
    """What the requests of one side of one step came to. sums: metric → moments, as
    ``statistics.moments`` has them; n_requests and n_failed for people. counted_at: when it last
    grew by a request. Moved only in the transaction that takes the requests from the ledger."""

    class Side(models.TextChoices):
        BASELINE = "baseline", "Old"
        CANDIDATE = "candidate", "New"

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="tallies")
    step = models.PositiveSmallIntegerField()
    side = models.CharField(max_length=10, choices=Side.choices)
    n_requests = models.PositiveBigIntegerField(default=0)
    n_failed = models.PositiveBigIntegerField(default=0)
    sums = models.JSONField(default=dict)
    started_at = models.DateTimeField()
    counted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["rollout", "step", "side"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["rollout", "step", "side"], name="rollout_tally_uniq")
        ]

    def __str__(self) -> str:
        return f"{self.rollout_id}.{self.step}.{self.side}"
