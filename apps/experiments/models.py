"""Comparisons on real requests: what is compared, who was in which arm, and what came of it."""

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from apps.core.models import TimestampedModel
from apps.core.tenant_rows import TenantRows


class Layer(TimestampedModel):
    """Experiments of one layer exclude each other: a subject is in one of them at most. Experiments
    of different layers are independent of each other."""

    name = models.SlugField(max_length=60, unique=True)
    salt = models.CharField(max_length=32, editable=False)
    holdout_percent = models.FloatField(
        "held out",
        default=0.0,
        validators=[MinValueValidator(0.0), MaxValueValidator(50.0)],
        help_text="Percent of subjects that are in none of its experiments, ever.",
    )
    version = models.PositiveIntegerField(default=1, editable=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Experiment(TimestampedModel):
    """slots: the ranges of its layer that it holds while it runs, [[first, end), ...].
    eligibility: as ``experiments.types`` reads it; empty lets everybody in. min_effect:
    relative, the least that is worth finding; planned_units: subjects in all that this takes.
    weights_set_at: since when its arms have the shares that they have; who was seen before may
    have been in another arm. drafted_by: who wrote the draft as it is, where that is certain.
    version: raised by every change; who changes it says which one they have seen."""

    class State(models.TextChoices):
        DRAFT = "draft", "Draft"
        RUNNING = "running", "Running"
        STOPPED = "stopped", "Stopped"

    class Subject(models.TextChoices):
        END_USER = "end_user", "End user"
        TOKEN = "token", "API token"
        CONVERSATION = "conversation", "Conversation"

    name = models.SlugField(max_length=60, unique=True)
    hypothesis = models.CharField(max_length=500, blank=True)
    route = models.ForeignKey("routing.Route", on_delete=models.PROTECT, related_name="experiments")
    layer = models.ForeignKey(Layer, on_delete=models.PROTECT, related_name="experiments")
    slots = models.JSONField(default=list, editable=False)
    share_percent = models.FloatField(
        "share of subjects",
        default=100.0,
        validators=[MinValueValidator(0.01), MaxValueValidator(100.0)],
        help_text="Percent of all subjects that take part.",
    )
    subject = models.CharField(
        "assigned by", max_length=14, choices=Subject.choices, default=Subject.END_USER
    )
    eligibility = models.JSONField(default=dict, blank=True)
    salt = models.CharField(max_length=32, editable=False)
    state = models.CharField(max_length=8, choices=State.choices, default=State.DRAFT)
    alpha = models.FloatField(
        "false alarms",
        default=0.05,
        validators=[MinValueValidator(0.001), MaxValueValidator(0.2)],
    )
    power = models.FloatField(
        default=0.8, validators=[MinValueValidator(0.5), MaxValueValidator(0.99)]
    )
    min_effect = models.FloatField(
        "least effect",
        default=0.05,
        validators=[MinValueValidator(0.001), MaxValueValidator(10.0)],
        help_text="Relative: 0.05 is five percent.",
    )
    planned_units = models.PositiveIntegerField("planned subjects", default=2000)
    pre_period_days = models.PositiveSmallIntegerField(
        "days before",
        default=0,
        validators=[MaxValueValidator(30)],
        help_text="Whose requests on this route make the comparison sharper (CUPED). 0: none.",
    )
    started_at = models.DateTimeField(null=True, blank=True, editable=False)
    weights_set_at = models.DateTimeField(null=True, blank=True, editable=False)
    stopped_at = models.DateTimeField(null=True, blank=True, editable=False)
    stopped_because = models.CharField(max_length=500, blank=True, editable=False)
    winner = models.ForeignKey(
        "Variant",
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="+",
    )
    started_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        editable=False,
        related_name="+",
    )
    drafted_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        editable=False,
        related_name="+",
    )
    looked_at = models.DateTimeField(null=True, blank=True, editable=False)
    version = models.PositiveIntegerField(default=1, editable=False)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(state="draft", started_at=None, stopped_at=None)
                | Q(state="running", started_at__isnull=False, stopped_at=None)
                | Q(state="stopped", stopped_at__isnull=False),
                name="experiment_state_whole",
            )
        ]

    def __str__(self) -> str:
        return self.name


class Variant(models.Model):
    """One arm. What it leaves empty is as the route has it: deployment (a version), other_route
    (where that one leads), parameters (what holds where a request says nothing), prompt_template (a
    system message; ``{system}`` in it stands for the request's own)."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="variants")
    name = models.SlugField(max_length=40)
    is_control = models.BooleanField("control", default=False)
    weight = models.PositiveSmallIntegerField(
        default=50, validators=[MinValueValidator(1), MaxValueValidator(1000)]
    )
    deployment = models.ForeignKey(
        "deployments.Deployment",
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
    )
    other_route = models.ForeignKey(
        "routing.Route", on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    parameters = models.JSONField(default=dict, blank=True)
    prompt_template = models.TextField(blank=True, max_length=20_000)

    class Meta:
        ordering = ["-is_control", "id"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["experiment", "name"], name="variant_name_uniq"),
            models.UniqueConstraint(
                fields=["experiment"], condition=Q(is_control=True), name="variant_control_uniq"
            ),
            models.CheckConstraint(
                condition=Q(deployment=None) | Q(other_route=None), name="variant_one_way"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class ExperimentMetric(models.Model):
    """What an experiment is judged by. metric: one of ``experiments.metrics``, or ``event:NAME`` of
    what programs report. tolerance: of a guardrail, the relative worsening that stops an arm."""

    class Role(models.TextChoices):
        PRIMARY = "primary", "Primary"
        SECONDARY = "secondary", "Secondary"
        GUARDRAIL = "guardrail", "Guardrail"

    class Better(models.TextChoices):
        HIGHER = "higher", "Higher"
        LOWER = "lower", "Lower"

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="metrics")
    metric = models.CharField(max_length=80)
    role = models.CharField(max_length=10, choices=Role.choices, default=Role.SECONDARY)
    better = models.CharField(max_length=6, choices=Better.choices)
    tolerance = models.FloatField(
        default=0.1, validators=[MinValueValidator(0.0), MaxValueValidator(10.0)]
    )

    class Meta:
        ordering = ["id"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["experiment", "metric", "role"], name="experiment_metric_uniq"
            ),
            models.UniqueConstraint(
                fields=["experiment"],
                condition=Q(role="primary"),
                name="experiment_primary_uniq",
            ),
        ]

    def __str__(self) -> str:
        return self.metric


class Assignment(TenantRows):
    """A subject that an experiment has seen, its arm, and what its requests came to. subject: its
    digest, 16 hexadecimal digits, as the ledger's rows have it. is_crossed: it was seen in a second
    arm, and counts no more. totals: metric → [numerator, denominator]; baseline: the same of the
    time before. Made and moved only where requests are counted: the arm itself comes of a hash."""

    owner_paths = ("tenant_id", "experiment", "experiment_id")

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="assignments")
    variant = models.ForeignKey(Variant, on_delete=models.CASCADE, related_name="assignments")
    subject = models.CharField(max_length=16)
    tenant_id = models.BigIntegerField()
    door = models.CharField(max_length=16, blank=True)
    first_seen_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    n_requests = models.PositiveIntegerField(default=0)
    is_crossed = models.BooleanField(default=False)
    totals = models.JSONField(default=dict)
    baseline = models.JSONField(default=dict)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["experiment", "subject"], name="assignment_subject_uniq"
            )
        ]
        indexes = [models.Index(fields=["experiment", "-id"], name="assignment_list_idx")]

    def __str__(self) -> str:
        return f"{self.subject} in {self.variant_id}"


class VariantTotal(models.Model):
    """Moments over an arm's subjects of one metric, of all of them (segment empty) or of one
    segment, such as ``tenant:5``; exact sums, as ``statistics.moments`` writes them."""

    variant = models.ForeignKey(Variant, on_delete=models.CASCADE, related_name="totals")
    metric = models.CharField(max_length=80)
    segment = models.CharField(max_length=60, blank=True)
    moments = models.JSONField()

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["variant", "metric", "segment"], name="variant_total_uniq"
            )
        ]

    def __str__(self) -> str:
        return f"{self.variant_id} {self.metric} {self.segment}"


class Look(models.Model):
    """The results at one moment, for the plot over time. results: as ``experiments.types`` has
    them."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="looks")
    at = models.DateTimeField()
    results = models.JSONField()

    class Meta:
        ordering = ["at"]
        default_permissions = ()
        indexes = [models.Index(fields=["experiment", "at"], name="look_time_idx")]

    def __str__(self) -> str:
        return f"{self.experiment_id} at {self.at:%Y-%m-%d %H:%M}"
