"""What workers are asked to do. A message carries nothing: the rows say what there is to do."""

import asyncio

from celery import shared_task
from celery.signals import worker_shutting_down
from django.utils import timezone

from apps.batches import running, selectors, services, storage, worker
from apps.batches.types import WAKE
from apps.core.services import BEAT, WORKER, heartbeat_note


class _Stop:
    """Whether this worker was told to stop; its signal handler runs beside the task."""

    is_asked = False


@worker_shutting_down.connect
def _on_shutting_down(**kwargs: object) -> None:
    _Stop.is_asked = True


@shared_task(name=WAKE, ignore_result=True)
def work() -> None:
    """Advance open batches for a while, then say that there is more."""
    heartbeat_note(WORKER)
    asyncio.run(worker.work(is_stopping=lambda: _Stop.is_asked))
    if not _Stop.is_asked and selectors.is_work_waiting(timezone.now()):
        services.wake()


@shared_task(name="batches.reap", ignore_result=True)
def reap() -> None:
    """Have work taken up again whose worker is gone, or whose message was lost; tidy up."""
    now = timezone.now()
    heartbeat_note(WORKER)
    heartbeat_note(BEAT)  # nobody else asks for this
    running.ended_items_purge(now=now)
    storage.drafts_purge()
    if selectors.is_work_waiting(now):
        services.wake()
