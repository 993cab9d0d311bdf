"""Families of JWTs that are over. Nobody who would refuse their tokens needs the rows: these have
expired by themselves."""

from apps.core.pruning import PruneOrder, Pruning, pruning_register, rows_prune
from apps.core.tenancy import every_tenant
from apps.rbac.models import TokenFamily


def register() -> None:
    pruning_register(
        Pruning(name="families", says="families of access tokens that are over", run=_prune)
    )


@every_tenant("what has ended is pruned, whosever it was")
def _prune(order: PruneOrder) -> int:
    return rows_prune(TokenFamily.objects.filter(expires_at__lt=order.before), order)
