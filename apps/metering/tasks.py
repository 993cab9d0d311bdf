"""What workers are asked to do for the ledger."""

from celery import shared_task

from apps.metering.services import usage_roll_up


@shared_task(name="metering.roll_up", ignore_result=True)
def roll_up() -> None:
    """Bring the sums of usage up to now."""
    usage_roll_up()
