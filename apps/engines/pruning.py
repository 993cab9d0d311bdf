"""What engines recorded, once it is old: by then the ledger was compared with it."""

from django.db.models import Exists, OuterRef

from apps.core.pruning import PruneOrder, Pruning, pruning_register, rows_prune
from apps.core.tenancy import every_tenant
from apps.engines.models import (
    EngineCrash,
    EngineJournal,
    JournalEntry,
    QuarantinedRequest,
    Suspicion,
)


def register() -> None:
    pruning_register(
        Pruning(name="journal", says="old entries of the engines' journals", run=_journal_prune)
    )
    pruning_register(
        Pruning(name="quarantine", says="requests whose quarantine is over", run=_quarantine_prune)
    )
    pruning_register(Pruning(name="crashes", says="old crashes of engines", run=_crashes_prune))


@every_tenant("what is over is over for whomever")
def _quarantine_prune(order: PruneOrder) -> int:
    """Suspicions count for a day or so; those that nobody was convicted by go with the rest."""
    rows_prune(Suspicion.objects.filter(noted_at__lt=order.before), order)
    return rows_prune(QuarantinedRequest.objects.filter(expires_at__lt=order.now), order)


def _crashes_prune(order: PruneOrder) -> int:
    return rows_prune(EngineCrash.objects.filter(at__lt=order.before), order)


def _journal_prune(order: PruneOrder) -> int:
    """Say first from when on the rest is complete: nobody then misses what is gone."""
    old = JournalEntry.objects.filter(read_at__lt=order.before)
    if not order.is_dry:
        journals = EngineJournal.objects.filter(pk__in=old.values("journal"))
        journals.filter(complete_since__lt=order.before).update(complete_since=order.before)
    n_entries = rows_prune(old, order)
    entries = JournalEntry.objects.filter(journal=OuterRef("pk"))
    over = EngineJournal.objects.filter(~Exists(entries), closed_at__lt=order.before)
    rows_prune(over, order)
    return n_entries
