"""What should run (Deployment) and what runs (Replica)."""

from pathlib import Path

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from guardian.models import UserObjectPermissionBase

from apps.core.models import TimestampedModel
from apps.core.outbound import MAX_URL_CHARS, UnsafeUrl, url_check
from apps.deployments.draft_models import NONE_OR_ALONE, NONE_OR_ANOTHER, wrong_draft
from apps.deployments.engine_options import (
    options_said,
    wrong_nanovllm,
    wrong_options,
    wrong_sizes,
)
from apps.deployments.option_fields import EngineOptions
from apps.engines.types import EMBEDDING_DEVICES
from apps.registry.types import Task as RegistryTask

_SECONDS = [MinValueValidator(1), MaxValueValidator(3600)]
_REPLICAS = [MinValueValidator(1), MaxValueValidator(16)]


class RemoteServer(TimestampedModel):
    """A server that is not ours and speaks OpenAI's API, with the key that it wants to see. Several
    deployments may lead to its models. The key can be set, and is never shown again."""

    name = models.SlugField(max_length=60, unique=True)
    base_url = models.CharField(
        "base URL",
        max_length=MAX_URL_CHARS,
        help_text="Such as https://models.example.com/v1; what it answers at /models is below it.",
    )
    api_key_sealed = models.TextField(blank=True, editable=False)
    ca_file = models.CharField(
        "certificates",
        max_length=300,
        blank=True,
        help_text="Path of a PEM file with the authorities that are believed. Empty: the system's.",
    )
    max_concurrency = models.PositiveSmallIntegerField(
        "requests at a time",
        default=64,
        validators=[MinValueValidator(1), MaxValueValidator(4096)],
        help_text="Of one server process; as many more wait, and the others are refused.",
    )
    connect_timeout_s = models.PositiveSmallIntegerField(
        "seconds to connect", default=5, validators=_SECONDS
    )
    first_byte_timeout_s = models.PositiveSmallIntegerField(
        "seconds to the first byte",
        default=60,
        validators=_SECONDS,
        help_text="Of a stream. An answer that comes whole may take as long as any request may.",
    )
    idle_timeout_s = models.PositiveSmallIntegerField(
        "seconds between pieces", default=30, validators=_SECONDS, help_text="Of a stream."
    )

    class Meta:
        ordering = ["name"]
        verbose_name = "remote server"

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        try:
            url_check(self.base_url)
        except UnsafeUrl as error:
            raise ValidationError({"base_url": str(error)}) from None
        if self.ca_file and not (self.ca_file.startswith("/") and Path(self.ca_file).is_file()):
            raise ValidationError({"ca_file": "There is no such file; give its whole path."})


class Deployment(EngineOptions, TimestampedModel):
    """Desired state of one model: a version on this node, or what a remote server has."""

    class DesiredState(models.TextChoices):
        RUNNING = "running", "Running"
        DRAINING = "draining", "Draining"  # the agent makes it stopped
        STOPPED = "stopped", "Stopped"

    class Backend(models.TextChoices):
        NATIVE = "native", "Ours"
        NANOVLLM = "nanovllm", "nano-vllm"

    class Dtype(models.TextChoices):
        AUTO = "auto", "Best for this machine"
        BFLOAT16 = "bfloat16", "bfloat16"
        FLOAT32 = "float32", "float32"

    class Quantization(models.TextChoices):
        NONE = "none", "As they are"
        INT8 = "int8", "int8"
        FP8 = "fp8", "fp8"

    class DeviceClass(models.TextChoices):
        AUTO = "auto", "What there is"
        CPU = "cpu", "Processor"
        CUDA = "cuda", "GPU"

    class Task(models.TextChoices):
        GENERATE = "generate", "Generates text"
        EMBED = "embed", "Makes embeddings"

    name = models.SlugField(max_length=60, unique=True)
    model_version = models.ForeignKey(
        "registry.ModelVersion",
        on_delete=models.PROTECT,
        related_name="deployments",
        null=True,
        blank=True,
        help_text="What to run here. Empty for a model at a remote server.",
    )
    remote = models.ForeignKey(
        RemoteServer,
        on_delete=models.PROTECT,
        related_name="deployments",
        null=True,
        blank=True,
        verbose_name="remote server",
    )
    remote_model = models.CharField(
        "model there", max_length=200, blank=True, help_text="As the remote server calls it."
    )
    remote_task = models.CharField(
        "what it does there", max_length=8, choices=Task.choices, default=Task.GENERATE
    )
    desired_state = models.CharField(
        max_length=8, choices=DesiredState.choices, default=DesiredState.RUNNING
    )
    min_replicas = models.PositiveSmallIntegerField(
        "fewest replicas", default=1, validators=_REPLICAS
    )
    max_replicas = models.PositiveSmallIntegerField(
        "most replicas",
        default=1,
        validators=_REPLICAS,
        help_text="Beyond the fewest as many run as keep requests from waiting.",
    )
    target_wait_ms = models.PositiveIntegerField(
        "longest wait, ms",
        default=1000,
        validators=[MinValueValidator(50), MaxValueValidator(600_000)],
        help_text="Where requests wait longer for their first step, replicas are added.",
    )
    n_replicas = models.PositiveSmallIntegerField(
        "replicas now", default=1, editable=False, help_text="How many should run at present."
    )
    scaled_because = models.CharField(max_length=200, blank=True, editable=False)
    scaled_at = models.DateTimeField(null=True, blank=True, editable=False)
    device_class = models.CharField(
        "runs on", max_length=8, choices=DeviceClass.choices, default=DeviceClass.AUTO
    )
    backend = models.CharField(
        "engine",
        max_length=10,
        choices=Backend.choices,
        default=Backend.NATIVE,
        db_default=Backend.NATIVE.value,
        help_text="nano-vllm is a package of others: Qwen3 on a GPU, and fewer parameters.",
    )
    dtype = models.CharField(max_length=10, choices=Dtype.choices, default=Dtype.AUTO)
    quantization = models.CharField(
        "weights",
        max_length=8,
        choices=Quantization.choices,
        default=Quantization.NONE,
        help_text="int8 and fp8 halve them when they are loaded. On a processor int8 needs the "
        "compiled kernels; fp8 needs a GPU.",
    )
    kv_cache_tokens = models.PositiveIntegerField(
        default=32768,
        validators=[MinValueValidator(256)],
        help_text="Tokens that all running requests together may hold.",
    )
    max_sequences = models.PositiveIntegerField(
        default=64, validators=[MinValueValidator(1)], help_text="Requests in one step at most."
    )
    max_batched_tokens = models.PositiveIntegerField(
        default=512, validators=[MinValueValidator(16)], help_text="Tokens in one step at most."
    )
    max_model_len = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(16)],
        help_text="Prompt and answer together at most. Empty: what the model allows, which of a "
        "remote one nobody here knows.",
    )
    generation = models.PositiveIntegerField(
        default=1,
        editable=False,
        help_text="Raised by every change that an engine must be started anew for.",
    )

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(
                    min_replicas__gte=1,
                    n_replicas__gte=models.F("min_replicas"),
                    n_replicas__lte=models.F("max_replicas"),
                    max_replicas__lte=16,
                ),
                name="deployment_replicas_1_to_16",
            ),
            models.CheckConstraint(
                condition=models.Q(model_version__isnull=False, remote__isnull=True)
                | models.Q(model_version__isnull=True, remote__isnull=False),
                name="deployment_here_or_remote",
            ),
            models.CheckConstraint(
                condition=models.Q(tensor_parallel__gte=1, tensor_parallel__lte=8),
                name="deployment_devices_1_to_8",
            ),
            models.CheckConstraint(
                condition=models.Q(disk_kv_cache_bytes__isnull=True)
                | models.Q(host_kv_cache_bytes__isnull=False),
                name="deployment_disk_below_host",
            ),
            models.CheckConstraint(condition=NONE_OR_ANOTHER, name="deployment_draft_another"),
            models.CheckConstraint(condition=NONE_OR_ALONE, name="deployment_draft_guesses"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def task(self) -> RegistryTask:
        """What its model does."""
        if self.model_version is not None:
            return self.model_version.task
        return "embed" if self.remote_task == self.Task.EMBED else "generate"

    @property
    def model_name(self) -> str:
        """What it serves, as people say it."""
        if self.model_version is not None:
            return str(self.model_version)
        return f"{self.remote_model} at {self.remote}"

    @property
    def context_length(self) -> int:
        """Prompt and answer together at most, in tokens."""
        if self.model_version is not None:
            return self.max_model_len or self.model_version.context_length
        return self.max_model_len or 0

    def clean(self) -> None:
        """Refuse what an engine would refuse at its start, while somebody is there to read it."""
        if (self.model_version is None) == (self.remote is None):
            text = "Give either a model version or a remote server."
            raise ValidationError({"model_version": text})
        if errors := self._wrong_remote() if self.remote is not None else self._wrong_engine():
            raise ValidationError(errors)

    def _wrong_remote(self) -> dict[str, str]:
        errors: dict[str, str] = {}
        if not self.remote_model.strip():
            errors["remote_model"] = "The remote server must be told which model."
        if self.max_model_len is None:
            errors["max_model_len"] = "Nobody here knows the context of a remote model: give it."
        if (self.min_replicas, self.max_replicas) != (1, 1):
            errors["max_replicas"] = "A remote server is one replica to us, however many it has."
        if self.backend != self.Backend.NATIVE:
            errors["backend"] = "A remote server has an engine of its own."
        return errors | wrong_options(self) | wrong_draft(self)

    def _wrong_engine(self) -> dict[str, str]:
        errors: dict[str, str] = {}
        if self.max_replicas < self.min_replicas:
            errors["max_replicas"] = f"At least the {self.min_replicas} that always run."
        if self.backend == self.Backend.NANOVLLM:
            errors |= wrong_nanovllm(self)
        elif self.task == "embed" and self.device_class not in (
            self.DeviceClass.AUTO,
            *EMBEDDING_DEVICES,
        ):
            errors["device_class"] = "An embedding model is computed on the processor only."
        if self.task == "embed" and self.quantization != self.Quantization.NONE:
            errors["quantization"] = "An embedding model runs with its weights as they are."
        elif (
            self.quantization == self.Quantization.FP8
            and self.device_class != self.DeviceClass.CUDA
        ):
            errors["quantization"] = "fp8 needs a GPU: let it run on one."
        return errors | wrong_sizes(self) | wrong_options(self) | wrong_draft(self)


class DeploymentUserObjectPermission(UserObjectPermissionBase):
    """What a person may do with one deployment. It goes with the deployment, and the person."""

    content_object = models.ForeignKey(Deployment, on_delete=models.CASCADE)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")


class Replica(TimestampedModel):
    """One running copy; made and removed by the engine agent, never by hand."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="replicas")
    index = models.PositiveSmallIntegerField()
    engine_process = models.OneToOneField(
        "engines.EngineProcess", on_delete=models.CASCADE, related_name="replica"
    )
    devices = models.ManyToManyField("engines.Device", blank=True, related_name="replicas")
    placed_generation = models.PositiveIntegerField(
        null=True, blank=True, help_text="Of the deployment, when it was given its devices."
    )
    n_threads = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="Its share of the cores; empty for all of them."
    )
    estimated_bytes = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="Reserved on each of its devices."
    )
    lasting_bytes = models.PositiveBigIntegerField(
        null=True,
        blank=True,
        help_text="Of them, what it holds for as long as it is ready and awake.",
    )
    refusal = models.CharField(
        max_length=300, blank=True, help_text="Why it does not run, where it fits nowhere."
    )

    class Meta:
        ordering = ["deployment", "index"]
        constraints = [
            models.UniqueConstraint(fields=["deployment", "index"], name="replica_index_uniq")
        ]

    def __str__(self) -> str:
        return f"{self.deployment}/{self.index}"

    @property
    def devices_said(self) -> str:
        """Its devices, for people; empty where it has none. Of rows that came with their nodes no
        query."""
        return ", ".join(str(device) for device in self.devices.all())

    @property
    def options_said(self) -> str:
        """What its engine does beyond others, for people; empty where it is nothing."""
        return options_said(self.deployment)
