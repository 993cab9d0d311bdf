"""What engines recorded, once it is old: by then the ledger was compared with it."""

from django.db.models import Exists, OuterRef

from apps.core.pruning import PruneOrder, Pruning, pruning_register, rows_prune
from apps.engines.models import EngineJournal, JournalEntry


def register() -> None:
    pruning_register(
        Pruning(name="journal", says="old entries of the engines' journals", run=_journal_prune)
    )


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
