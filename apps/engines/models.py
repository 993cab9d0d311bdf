"""Engine processes as the agent observes them, and what they say of the requests that they ran.
Desired state lives in deployments."""

from django.db import models
from django.template.defaultfilters import filesizeformat

from apps.core.models import TimestampedModel
from apps.core.tenant_rows import TenantRows


class EngineProcess(TimestampedModel):
    """One slot for an engine process; ``epoch`` counts its starts."""

    class State(models.TextChoices):
        FETCHING = "fetching", "Fetching"
        WAITING = "waiting", "Waiting for memory"
        STARTING = "starting", "Starting"
        READY = "ready", "Ready"
        UNRESPONSIVE = "unresponsive", "Unresponsive"
        BACKING_OFF = "backing_off", "Backing off"
        CRASH_LOOP = "crash_loop", "Crash loop"
        DRAINING = "draining", "Draining"
        STOPPED = "stopped", "Stopped"
        FAILED = "failed", "Failed"

    name = models.CharField(max_length=120, unique=True)
    state = models.CharField(max_length=16, choices=State.choices, default=State.STOPPED)
    epoch = models.PositiveBigIntegerField(default=0)
    pid = models.PositiveIntegerField(null=True, blank=True)
    socket_path = models.CharField(max_length=108, blank=True)
    log_path = models.CharField(max_length=4096, blank=True)  # the longest path of Linux
    started_at = models.DateTimeField(null=True, blank=True)
    ready_at = models.DateTimeField(null=True, blank=True)
    last_pong_at = models.DateTimeField(null=True, blank=True)
    ping_ms = models.FloatField(null=True, blank=True)
    n_restarts = models.PositiveIntegerField(default=0)
    last_error = models.TextField(blank=True)
    tries_again_at = models.DateTimeField(
        null=True, blank=True, help_text="When it is started again by itself."
    )
    n_fetched_bytes = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="Of its files; empty once they are there."
    )
    n_fetch_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    info = models.JSONField(default=dict, blank=True, help_text="What the engine says it serves.")
    stats = models.JSONField(default=dict, blank=True, help_text="Counters of the last pong.")

    class Meta:
        ordering = ["name"]
        verbose_name = "engine process"
        verbose_name_plural = "engine processes"

    def __str__(self) -> str:
        return self.name

    @property
    def state_said(self) -> str:
        """Its state, in a word; one that is ready may sleep until a request comes, and then until
        others give it the memory that they share."""
        if self.state == self.State.READY and self.stats.get("is_asleep"):
            is_waiting = self.stats.get("waits_for_memory")
            return self.State.WAITING.label if is_waiting else "Asleep"
        return self.get_state_display()

    @property
    def fetch_said(self) -> str:
        """How far its files are; empty where they need not be fetched, or are there."""
        if self.n_fetched_bytes is None:
            return ""
        of = filesizeformat(self.n_fetch_bytes or 0)
        return f"{filesizeformat(self.n_fetched_bytes)} of {of} fetched"


class Node(TimestampedModel):
    """A machine that runs engines, as its agent last saw it."""

    name = models.CharField(max_length=120, unique=True)
    n_cores = models.PositiveIntegerField("cores")
    seen_at = models.DateTimeField()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Device(TimestampedModel):
    """What a node computes on, with the memory that there is for it; or its disk, as far as engines
    may use that."""

    class Kind(models.TextChoices):
        CPU = "cpu", "Processor"
        CUDA = "cuda", "GPU"
        DISK = "disk", "Disk"

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="devices")
    kind = models.CharField(max_length=8, choices=Kind.choices)
    index = models.PositiveSmallIntegerField()
    uid = models.CharField(max_length=80, help_text="Tells it from the others of its node.")
    name = models.CharField(max_length=200)
    total_bytes = models.PositiveBigIntegerField()
    free_bytes = models.PositiveBigIntegerField(help_text="What nobody held when last looked at.")
    auto_dtype = models.CharField(
        max_length=20,
        blank=True,
        help_text="What an engine computes in there if it is left the choice.",
    )

    class Meta:
        ordering = ["node", "kind", "index"]
        constraints = [models.UniqueConstraint(fields=["node", "uid"], name="device_uid_uniq")]

    def __str__(self) -> str:
        return f"{self.node}/{self.uid}"


class EngineJournal(models.Model):
    """What one start of an engine recorded, as far as the agent of its machine has read it."""

    name = models.CharField(max_length=80, unique=True)
    engine_name = models.CharField(max_length=120, blank=True)
    epoch = models.PositiveBigIntegerField()
    log_number = models.PositiveIntegerField(default=0)
    log_end = models.PositiveBigIntegerField(default=0)
    read_at = models.DateTimeField(
        null=True, blank=True, help_text="All that its engine had written by then is here."
    )
    # Or lost; either way nobody may conclude from what is not there.
    complete_since = models.DateTimeField(help_text="What was read before was pruned.")
    closed_at = models.DateTimeField(
        null=True, blank=True, help_text="Its engine is gone, and all of it was read."
    )

    class Meta:
        indexes = [models.Index(fields=["engine_name", "epoch"], name="journal_engine_idx")]

    def __str__(self) -> str:
        return self.name


class JournalEntry(models.Model):
    """One request of a journal, field by field a ``RequestEnd``."""

    # Its index is the constraint's.
    journal = models.ForeignKey(
        EngineJournal, on_delete=models.CASCADE, related_name="entries", db_index=False
    )
    key = models.PositiveBigIntegerField()
    request_id = models.CharField(max_length=128)
    n_prompt_tokens = models.PositiveIntegerField()
    n_cached_tokens = models.PositiveIntegerField()
    n_completion_tokens = models.PositiveIntegerField()
    finish_reason = models.CharField(max_length=16, blank=True)
    error_code = models.CharField(max_length=60, blank=True)
    first_step = models.PositiveBigIntegerField()
    last_step = models.PositiveBigIntegerField()
    waited_ms = models.FloatField()
    started_at = models.DateTimeField()
    first_token_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField()
    read_at = models.DateTimeField(db_index=True, help_text="By the agent's clock.")

    class Meta:
        verbose_name_plural = "journal entries"
        indexes = [models.Index(fields=["request_id"], name="journal_request_idx")]
        constraints = [
            models.UniqueConstraint(fields=["journal", "key"], name="journal_entry_once"),
        ]

    def __str__(self) -> str:
        return self.request_id

    @property
    def first_token_ms(self) -> float | None:
        """From its start in the engine; None where it made none."""
        if self.first_token_at is None:
            return None
        return (self.first_token_at - self.started_at).total_seconds() * 1000

    @property
    def end_said(self) -> str:
        return ", ".join(filter(None, (self.finish_reason, self.error_code)))


class EngineCrash(models.Model):
    """The end of an engine that nobody asked for."""

    engine_name = models.CharField(max_length=120)
    epoch = models.PositiveBigIntegerField()
    at = models.DateTimeField(db_index=True)
    reason = models.TextField()
    log_end = models.TextField(blank=True, help_text="The last lines that it wrote.")

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "engine crashes"
        constraints = [
            models.UniqueConstraint(fields=["engine_name", "epoch"], name="engine_crash_once")
        ]

    def __str__(self) -> str:
        return f"{self.engine_name} {self.epoch}"


class Suspicion(TenantRows):
    """A request that was in an engine when its connection broke. Whether the engine died, and the
    request had not ended before, ``engines.quarantine`` finds out."""

    owner_paths = ("tenant_id",)

    tenant_id = models.BigIntegerField()
    digest = models.CharField(max_length=64, db_index=True)
    deployment_name = models.CharField(max_length=120)
    engine_name = models.CharField(max_length=120)
    epoch = models.PositiveBigIntegerField()
    request_id = models.CharField(max_length=128)
    noted_at = models.DateTimeField(db_index=True)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["tenant_id", "-id"], name="suspicion_tenant_idx")]

    def __str__(self) -> str:
        return self.request_id


class QuarantinedRequest(TenantRows):
    """A request that is refused because engines died of it. digest: of the request; of its words
    nothing is kept."""

    tenant = models.ForeignKey(
        "tenants.Tenant", on_delete=models.CASCADE, related_name="quarantined_requests"
    )
    digest = models.CharField(max_length=64, unique=True)
    deployment_name = models.CharField("deployment", max_length=120)
    request_id = models.CharField("last request", max_length=128)
    n_deaths = models.PositiveSmallIntegerField("engines that died")
    since = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        ordering = ["-id"]
        verbose_name = "quarantined request"

    def __str__(self) -> str:
        return self.request_id


class EngineSample(models.Model):
    """How an engine did over one span of time, which begins at ``at``. Written and thinned by
    ``engines.sampling`` alone. Latencies are of the requests that ended in it, by the journal."""

    engine_name = models.CharField(max_length=120)
    span_s = models.PositiveSmallIntegerField()
    at = models.DateTimeField()
    n_running = models.FloatField()
    n_waiting = models.FloatField()
    prompt_tokens_per_s = models.FloatField()
    completion_tokens_per_s = models.FloatField()
    rss_bytes = models.PositiveBigIntegerField()
    kv_used = models.FloatField(help_text="Of its blocks, 0 to 1.")
    n_requests = models.PositiveIntegerField()
    ttft_ms = models.FloatField(null=True, help_text="The median.")
    ttft_p95_ms = models.FloatField(null=True)
    itl_ms = models.FloatField(null=True, help_text="The median of each request's mean.")
    itl_p95_ms = models.FloatField(null=True)

    class Meta:
        constraints = [
            # Its index is what plots read by.
            models.UniqueConstraint(
                fields=["engine_name", "span_s", "at"], name="engine_sample_once"
            )
        ]
        indexes = [models.Index(fields=["span_s", "at"], name="engine_sample_age_idx")]

    def __str__(self) -> str:
        return f"{self.engine_name} {self.at:%Y-%m-%d %H:%M:%S}"
