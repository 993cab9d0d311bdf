"""What workers are asked to do for rollouts. A message carries nothing: the rows say what there is
to do."""

from celery import shared_task

from apps.rollouts import controller


@shared_task(name="rollouts.tick", ignore_result=True)
def tick() -> None:
    """Count, judge, and move what is to be moved."""
    controller.tick()
