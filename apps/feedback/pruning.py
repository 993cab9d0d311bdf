"""What was said longer ago than an operator wants to keep it. Unless one is set, it stays as long
as the rows of the ledger, which is for ever."""

from datetime import timedelta
from typing import Final

from django.conf import settings
from django.db.models import Q

from apps.core.pruning import PruneOrder, Pruning, pruning_register, rows_prune
from apps.core.tenancy import every_tenant
from apps.feedback.models import MetricEvent

_NEVER: Final = 0


def register() -> None:
    pruning_register(
        Pruning(name="feedback", says="feedback and events past FEEDBACK_KEEP_DAYS", run=_prune)
    )


@every_tenant("what is old is pruned, whosever it was")
def _prune(order: PruneOrder) -> int:
    """What is still to be counted stays until it was."""
    if settings.FEEDBACK_KEEP_DAYS == _NEVER:
        return 0
    counted = Q(experiment_arm="") | Q(is_in_experiments=True)
    counted &= Q(rollout_arm="") | Q(is_in_rollout=True)
    before = order.now - timedelta(days=settings.FEEDBACK_KEEP_DAYS)
    return rows_prune(MetricEvent.objects.filter(counted, created_at__lt=before), order)
