"""The columns of a deployment that most leave as they are: how its engine stores keys and values,
guesses and attends, and what it has beside one device. ``engine_options`` says what goes
together."""

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from apps.deployments.estimates import (
    FLASHINFER_BYTES,
    GPU_ASLEEP_AMONG_SEVERAL_BYTES,
    GPU_ASLEEP_BYTES,
)

_TIER_BYTES = [MinValueValidator(1), MaxValueValidator(2**50)]


class EngineOptions(models.Model):
    class KVCacheDtype(models.TextChoices):
        AUTO = "auto", "As they are computed"
        FP8 = "fp8", "fp8"

    class Speculation(models.TextChoices):
        AUTO = "auto", "Where they pay"
        OFF = "off", "None"
        NGRAM = "ngram", "By prompt lookup"

    class Attention(models.TextChoices):
        AUTO = "auto", "The fastest there is"
        TRITON = "triton", "Our kernels"
        FLASH_ATTN = "flash-attn", "flash-attn"
        FLASHINFER = "flashinfer", "FlashInfer"

    kv_cache_dtype = models.CharField(
        "keys and values",
        max_length=8,
        choices=KVCacheDtype.choices,
        default=KVCacheDtype.AUTO,
        db_default=KVCacheDtype.AUTO.value,
        help_text="What the cache holds of each token. In fp8 as many tokens take half the memory; "
        "it needs a GPU, from Ada and Hopper on.",
    )
    speculation = models.CharField(
        "guesses",
        max_length=8,
        choices=Speculation.choices,
        default=Speculation.AUTO,
        db_default=Speculation.AUTO.value,
        help_text="Of the next tokens, several of which one step checks: the same answers, sooner. "
        "Where they pay: by a draft model where there is one, else by what a text repeats on a "
        "processor, and none on a GPU.",
    )
    draft_version = models.ForeignKey(
        "registry.ModelVersion",
        on_delete=models.PROTECT,
        related_name="+",
        null=True,
        blank=True,
        verbose_name="draft model",
        help_text="A much smaller model with the same tokenizer, whose guesses this one checks "
        "several at a time: the same answers, sooner. Empty: none.",
    )
    attention = models.CharField(
        max_length=12,
        choices=Attention.choices,
        default=Attention.AUTO,
        db_default=Attention.AUTO.value,
        help_text="Of a GPU, where it is measured at each start. A library that is named has to be "
        "installed beside the engine and to fit, or the engine does not start.",
    )
    tensor_parallel = models.PositiveSmallIntegerField(
        "devices of a replica",
        default=1,
        db_default=1,
        validators=[MinValueValidator(1), MaxValueValidator(8)],
        help_text="GPUs of one machine that hold the model together, each its part of every layer. "
        "For what is too large for one, or must answer faster.",
    )
    sleep_after_s = models.PositiveIntegerField(
        "sleeps after, seconds",
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(604_800)],
        help_text="Without work for so long, an engine gives its GPU's memory back until the next "
        "request, which others that sleep may use meanwhile. Empty: never.",
    )
    host_kv_cache_bytes = models.PositiveBigIntegerField(
        "host memory for the cache, bytes",
        null=True,
        blank=True,
        validators=_TIER_BYTES,
        help_text="Of each replica, for prompts' beginnings that find no room on the GPU any more "
        "and for requests that are put off. Empty: none.",
    )
    disk_kv_cache_bytes = models.PositiveBigIntegerField(
        "disk for the cache, bytes",
        null=True,
        blank=True,
        validators=_TIER_BYTES,
        help_text="Of each replica, encrypted, for what finds no room in that host memory. "
        "Empty: none.",
    )

    class Meta:
        abstract = True

    @property
    def asleep_bytes(self) -> int | None:
        """What a replica that sleeps keeps of each of its GPUs; the rest of what it needs is shared
        with others that sleep there. None: it never sleeps, and shares nothing."""
        if self.sleep_after_s is None:
            return None
        kept = GPU_ASLEEP_AMONG_SEVERAL_BYTES if self.tensor_parallel > 1 else GPU_ASLEEP_BYTES
        if self.attention == self.Attention.FLASHINFER:
            kept += FLASHINFER_BYTES * (1 if self.draft_version_id is None else 2)
        return kept
