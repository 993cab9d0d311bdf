"""What the worker does for the platform as a whole."""

import time
from typing import Final

from celery import shared_task

from apps.audit.types import SYSTEM
from apps.console.pruning import platform_prune

# The worker does one thing at a time, and batches wait meanwhile: what is left goes the next day.
_PRUNE_MOST_S: Final = 60.0


@shared_task(name="console.prune", ignore_result=True)
def prune() -> None:
    until_s = time.monotonic() + _PRUNE_MOST_S
    platform_prune(actor=SYSTEM, is_dry=False, is_over=lambda: time.monotonic() > until_s)
