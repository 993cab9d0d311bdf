"""What workers are asked to do for experiments."""

from celery import shared_task

from apps.experiments.counting import rows_count
from apps.experiments.looks import looks_take


@shared_task(name="experiments.count", ignore_result=True)
def count() -> None:
    """Count what has settled since, and look at what came of it."""
    rows_count()
    looks_take()
