"""Stamps of purges that are long past: what they were of has ended by its own time since."""

from datetime import timedelta
from typing import Final

from django.conf import settings

from apps.core.models import ChangeStamp
from apps.core.pruning import PruneOrder, Pruning, pruning_register, rows_prune
from apps.routing.types import RESPONSES_STAMP

# Over the life of an answer, for a request that was begun before the purge and ends after it.
_KEPT: Final = timedelta(days=1)


def register() -> None:
    pruning_register(Pruning(name="purges", says="purges of kept answers, long past", run=_prune))


def _prune(order: PruneOrder) -> int:
    before = order.now - _KEPT - timedelta(seconds=settings.RESPONSE_CACHE_TTL_S)
    named = ChangeStamp.objects.filter(name__startswith=f"{RESPONSES_STAMP}:")
    return rows_prune(named.filter(moved_at__lt=before), order)
