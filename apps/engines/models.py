"""Engine processes as the agent observes them. Desired state lives in deployments."""

from django.db import models

from apps.core.models import TimestampedModel


class EngineProcess(TimestampedModel):
    """One slot for an engine process; ``epoch`` counts its starts."""

    class State(models.TextChoices):
        STARTING = "starting", "Starting"
        READY = "ready", "Ready"
        UNRESPONSIVE = "unresponsive", "Unresponsive"
        BACKING_OFF = "backing_off", "Backing off"
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
    info = models.JSONField(default=dict, blank=True, help_text="What the engine says it serves.")
    stats = models.JSONField(default=dict, blank=True, help_text="Counters of the last pong.")

    class Meta:
        ordering = ["name"]
        verbose_name = "engine process"
        verbose_name_plural = "engine processes"

    def __str__(self) -> str:
        return self.name
