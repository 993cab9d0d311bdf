"""What workers are asked to do. A message carries nothing: the rows say what there is to do."""

import asyncio

from celery import shared_task
from celery.signals import worker_shutting_down
from django.conf import settings
from django.utils import timezone

from apps.core.services import WORKER, heartbeat_note
from apps.registry.selectors import verifications_claimable
from apps.registry.services import verifications_wake
from apps.registry.types import VERIFY_WORK
from apps.verification import worker
from apps.verification.scratch import scratch_sweep


class _Stop:
    """Whether this worker was told to stop; its signal handler runs beside the task."""

    is_asked = False


@worker_shutting_down.connect
def _on_shutting_down(**kwargs: object) -> None:
    _Stop.is_asked = True


@shared_task(name=VERIFY_WORK, ignore_result=True)
def work() -> None:
    """Run what waits, one after the other."""
    heartbeat_note(WORKER)
    asyncio.run(worker.work(is_stopping=lambda: _Stop.is_asked))


@shared_task(name="verification.reap", ignore_result=True)
def reap() -> None:
    """Sweep up after workers that are gone, and have what they had in hand taken up again."""
    scratch_sweep(settings.VAR_DIR)
    if verifications_claimable(timezone.now()).exists():
        verifications_wake()
