"""What a worker tidies up for the doors."""

from celery import shared_task
from django.utils import timezone

from apps.gateway.idempotency import expired_delete


@shared_task(name="gateway.forget", ignore_result=True)
def forget() -> None:
    """Drop the answers that were kept for a day, and the keys that they were kept under."""
    while expired_delete(now=timezone.now()):
        pass
