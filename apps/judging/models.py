"""Who scores answers by a stated rubric, and the answers that wait for it."""

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q

from apps.core.models import TimestampedModel
from apps.core.tenant_rows import TenantRows
from apps.judging.types import MAX_NAME_CHARS, MAX_RUBRIC_CHARS, MOST_SCORE


class Judge(TimestampedModel):
    """A model with a rubric. It asks a route in the name of an API token, whose tenant pays. What
    its scores are made by stays once an answer was taken for it: only scores by one rubric compare.
    n_…: over all time. version: raised by every change of a person's; who changes it says which one
    they have seen."""

    name = models.SlugField(max_length=MAX_NAME_CHARS, unique=True)
    rubric = models.TextField(
        max_length=MAX_RUBRIC_CHARS,
        help_text="What makes an answer good, and what each score means.",
    )
    lowest = models.PositiveSmallIntegerField(
        "lowest score", default=1, validators=[MaxValueValidator(MOST_SCORE)]
    )
    highest = models.PositiveSmallIntegerField(
        "highest score", default=5, validators=[MaxValueValidator(MOST_SCORE)]
    )
    route = models.ForeignKey(
        "routing.Route",
        on_delete=models.PROTECT,
        related_name="judges",
        help_text="The model that scores; better not one of those that are compared.",
    )
    api_token = models.ForeignKey(
        "rbac.ApiToken",
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name="API token",
        help_text="In whose name it asks: its limits hold, and its tenant pays.",
    )
    sample_percent = models.FloatField(
        "share of answers",
        default=100.0,
        validators=[MinValueValidator(0.01), MaxValueValidator(100.0)],
        help_text="Percent of the answers that could be scored.",
    )
    per_day = models.PositiveIntegerField(
        "answers a day",
        default=1000,
        validators=[MinValueValidator(1), MaxValueValidator(1_000_000)],
        help_text="No more than so many are taken in a day of UTC.",
    )
    is_on = models.BooleanField(
        "on", default=True, help_text="When off, no answer is taken and none is scored."
    )
    day = models.DateField(null=True, editable=False)
    n_taken_in_day = models.PositiveIntegerField(default=0, editable=False)
    n_taken = models.PositiveIntegerField("taken", default=0, editable=False)
    n_scored = models.PositiveIntegerField("scored", default=0, editable=False)
    n_failed = models.PositiveIntegerField("without a score", default=0, editable=False)
    last_problem = models.CharField(max_length=300, blank=True, editable=False)
    version = models.PositiveIntegerField(default=1, editable=False)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(condition=Q(lowest__lt=F("highest")), name="judge_scale")
        ]

    def __str__(self) -> str:
        return self.name


class AnswerSample(TenantRows):
    """An answer that waits for its score, with what was asked, sealed; gone as soon as it is
    scored, given up, or too old. tenant_id, end_user: whose it is. due_at: not to be taken before.
    attempt: how often it was taken, which is under what a worker writes."""

    owner_paths = ("tenant_id", "judge", "judge_id")

    judge = models.ForeignKey(Judge, on_delete=models.CASCADE, related_name="samples")
    tenant_id = models.BigIntegerField()
    request_id = models.CharField(max_length=64)
    end_user = models.CharField(max_length=512, blank=True)
    sealed = models.TextField()
    created_at = models.DateTimeField()
    due_at = models.DateTimeField()
    attempt = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering = ["id"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["judge", "request_id"], name="answer_sample_uniq")
        ]
        indexes = [
            models.Index(fields=["due_at"], name="answer_sample_due_idx"),
            models.Index(fields=["created_at"], name="answer_sample_age_idx"),
            models.Index(fields=["tenant_id", "end_user"], name="answer_sample_person_idx"),
        ]

    def __str__(self) -> str:
        return f"{self.request_id} for {self.judge_id}"
