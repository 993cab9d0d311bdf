"""Answers that nobody came to score."""

from apps.core.pruning import PruneOrder, Pruning, pruning_register, rows_prune
from apps.core.tenancy import every_tenant
from apps.judging.models import AnswerSample
from apps.judging.types import KEEP_AT_MOST


def register() -> None:
    says = f"answers that waited {KEEP_AT_MOST.days} days for a judge"
    pruning_register(Pruning(name="answer_samples", says=says, run=_prune))


@every_tenant("what is old is pruned, whosever it was")
def _prune(order: PruneOrder) -> int:
    return rows_prune(AnswerSample.objects.filter(created_at__lt=order.now - KEEP_AT_MOST), order)
