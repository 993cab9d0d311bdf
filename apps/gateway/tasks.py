"""What a worker does for the doors: it tidies up, and has answers scored."""

import asyncio

from celery import shared_task
from celery.signals import worker_shutting_down
from django.utils import timezone

from apps.gateway import judging
from apps.gateway.idempotency import expired_delete


class _Stop:
    """Whether this worker was told to stop; its signal handler runs beside the task."""

    is_asked = False


@worker_shutting_down.connect
def _on_shutting_down(**kwargs: object) -> None:
    _Stop.is_asked = True


@shared_task(name="gateway.forget", ignore_result=True)
def forget() -> None:
    """Drop the answers that were kept for a day, and the keys that they were kept under."""
    while expired_delete(now=timezone.now()):
        pass


@shared_task(name="gateway.judge", ignore_result=True)
def judge() -> None:
    """Have judges score answers that wait, for a while."""
    asyncio.run(judging.judge(is_stopping=lambda: _Stop.is_asked))
