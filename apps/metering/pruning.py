"""Meters of days and months gone by. The ledger stays: it is what bills are made of."""

from django.db.models import Q, QuerySet
from django.db.models.functions import Length

from apps.core.pruning import PruneOrder, Pruning, pruning_register, rows_prune
from apps.core.tenancy import every_tenant
from apps.metering.models import Meter


def register() -> None:
    pruning_register(
        Pruning(name="meters", says="meters of past days and months", run=_meters_prune)
    )


@every_tenant("meters of the past are pruned, whosever they are")
def _meters_prune(order: PruneOrder) -> int:
    return rows_prune(meters_past(order), order)


def meters_past(order: PruneOrder) -> "QuerySet[Meter]":
    """Return the meters whose period ended before ``order.before``. One that still holds tokens of
    a request stays: its settling will ask for it by its id.

    Names of equal length sort as the times that they name, whatever the database's collation.
    """
    day, month = f"{order.before:%Y-%m-%d}", f"{order.before:%Y-%m}"
    return Meter.objects.alias(length=Length("period")).filter(
        Q(length=len(day), period__lt=day) | Q(length=len(month), period__lt=month), n_held=0
    )
