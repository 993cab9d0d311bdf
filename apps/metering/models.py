"""The usage ledger: one row per request, reserved before dispatch and settled once; the meters that
its rows move; and the roll-ups that add them up. They store ids and names and have no foreign keys
that the database holds, so that they outlive what they speak of."""

from django.db import models
from django.db.models import Q

from apps.core.prices import Prices
from apps.core.tenant_rows import TenantRows
from apps.metering.histograms import empty


class UsageRecord(TenantRows):
    owner_paths = ("tenant_id",)

    class State(models.TextChoices):
        RESERVED = "reserved", "Reserved"
        SETTLED = "settled", "Settled"

    class Outcome(models.TextChoices):
        COMPLETED = "completed", "Completed"
        ABORTED = "aborted", "Aborted by the client"
        FAILED = "failed", "Failed"
        INTERRUPTED = "interrupted", "Interrupted"

    request_id = models.CharField(max_length=64, unique=True)
    attempt = models.PositiveSmallIntegerField(default=1)
    is_fallback = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Its deployment is of the route's chain for overload and failure.",
    )
    tenant_id = models.BigIntegerField()
    api_token_id = models.BigIntegerField(null=True, blank=True)
    user_id = models.BigIntegerField(null=True, blank=True)
    end_user = models.CharField(
        max_length=512, blank=True, help_text="Whom the tenant serves, as it calls them."
    )
    door = models.CharField(max_length=16)
    endpoint = models.CharField(max_length=40)
    route_name = models.CharField(max_length=120)
    experiment_arm = models.CharField(
        max_length=250, blank=True, help_text="Of the experiments that it took part in."
    )
    rollout_arm = models.CharField(
        max_length=60, blank=True, db_default="", help_text="Step and side of its route's rollout."
    )
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
    # Of one token, when the request came; in micros, as apps.core.prices has them.
    prompt_micro = models.PositiveBigIntegerField(default=0)
    cached_micro = models.PositiveBigIntegerField(default=0)
    completion_micro = models.PositiveBigIntegerField(default=0)
    cost_micro = models.PositiveBigIntegerField(default=0)
    ttft_ms = models.FloatField(null=True, blank=True)
    total_ms = models.FloatField(null=True, blank=True)
    created_at = models.DateTimeField(db_index=True)
    expires_at = models.DateTimeField(help_text="A row still reserved then is an orphan.")
    settled_at = models.DateTimeField(null=True, blank=True)
    is_from_cache = models.BooleanField(
        default=False, help_text="A kept answer: no engine was asked, and nothing is charged."
    )
    is_rolled_up = models.BooleanField(
        default=False, help_text="Its numbers are in the roll-ups. Set with them, or not at all."
    )

    is_in_experiments = models.BooleanField(
        default=False, db_default=False, help_text="Its experiments have counted it."
    )
    is_in_rollout = models.BooleanField(
        default=False, db_default=False, help_text="Its rollout has counted it."
    )

    class Meta:
        ordering = ["-id"]
        verbose_name = "usage record"
        indexes = [
            models.Index(fields=["tenant_id", "-id"], name="usage_tenant_idx"),
            models.Index(
                fields=["tenant_id", "end_user", "created_at"],
                condition=Q(end_user__gt=""),
                name="usage_end_user_idx",
            ),
            models.Index(
                fields=["expires_at"], condition=Q(state="reserved"), name="usage_open_idx"
            ),
            models.Index(
                fields=["id"],
                condition=Q(state="settled", is_rolled_up=False),
                name="usage_to_roll_up_idx",
            ),
            models.Index(
                fields=["id"],
                condition=Q(state="settled", is_in_experiments=False) & Q(experiment_arm__gt=""),
                name="usage_to_experiment_idx",
            ),
            models.Index(
                fields=["id"],
                condition=Q(state="settled", is_in_rollout=False) & Q(rollout_arm__gt=""),
                name="usage_to_rollout_idx",
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

    @property
    def prices(self) -> Prices:
        """What held when the request came, whatever its plan says by now."""
        return Prices(
            prompt=self.prompt_micro, cached=self.cached_micro, completion=self.completion_micro
        )


class Meter(TenantRows):
    """What one scope (a tenant, a key, an end user) has used and holds within one period: tokens of
    a day or a month, or requests that are open. Moved only by ``metering.meters``."""

    owner_paths = ("scope",)
    owner_sql = (
        "CASE split_part(scope, ':', 1) "
        "WHEN 'key' THEN split_part(scope, ':', 2)::bigint IN (SELECT id FROM rbac_apitoken) "
        "ELSE split_part(scope, ':', 2)::bigint = ANY ({tenants}) END"
    )

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


class UsageRollup(TenantRows):
    """Sums over the settled requests that came within an hour or a day of UTC. Moved only by
    ``metering.rollups``, which says how each request is in them once."""

    class Granularity(models.TextChoices):
        HOUR = "hour", "Hour"
        DAY = "day", "Day"

    granularity = models.CharField(max_length=4, choices=Granularity.choices)
    period_start = models.DateTimeField()
    # For names, plans and filters; the database does not hold it.
    tenant = models.ForeignKey(
        "tenants.Tenant", on_delete=models.DO_NOTHING, db_constraint=False, related_name="+"
    )
    api_token_id = models.BigIntegerField(default=0, help_text="0: without a token.")
    route_name = models.CharField(max_length=120)
    model_version_id = models.BigIntegerField()
    n_requests = models.PositiveBigIntegerField(default=0)
    n_failed = models.PositiveBigIntegerField(default=0)
    n_prompt_tokens = models.PositiveBigIntegerField(default=0)
    n_cached_tokens = models.PositiveBigIntegerField(default=0)
    n_completion_tokens = models.PositiveBigIntegerField(default=0)
    cost_micro = models.PositiveBigIntegerField(default=0)
    # Whole numbers, so that the sum does not depend on the order.
    ttft_us_sum = models.PositiveBigIntegerField(default=0)
    total_us_sum = models.PositiveBigIntegerField(default=0)
    ttft_buckets = models.JSONField(default=empty, help_text="As metering.histograms has them.")
    total_buckets = models.JSONField(default=empty)

    class Meta:
        ordering = ["-period_start", "id"]
        verbose_name = "usage roll-up"
        constraints = [
            models.UniqueConstraint(
                fields=[
                    "granularity", "period_start", "tenant", "api_token_id", "route_name",
                    "model_version_id",
                ],
                name="usage_rollup_uniq",
            )
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.route_name} {self.granularity} {self.period_start:%Y-%m-%d %H:%M}"


class RefusalRollup(TenantRows):
    """How many requests of a tenant were refused within an hour of UTC, by why: they have no row in
    the ledger."""

    period_start = models.DateTimeField()
    # For filters; the database does not hold it.
    tenant = models.ForeignKey(
        "tenants.Tenant", on_delete=models.DO_NOTHING, db_constraint=False, related_name="+"
    )
    code = models.CharField(max_length=60, help_text="As the answer said it.")
    n_requests = models.PositiveBigIntegerField(default=0)

    class Meta:
        ordering = ["-period_start", "id"]
        verbose_name = "refusal roll-up"
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["period_start", "tenant", "code"], name="refusal_rollup_uniq"
            )
        ]

    def __str__(self) -> str:
        return f"{self.code} {self.period_start:%Y-%m-%d %H:%M}"
