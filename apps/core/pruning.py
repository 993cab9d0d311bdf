"""What grows for ever unless somebody clears it away. Each room says at its start what of its own
may go; one command and one daily task ask them all, and know none of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

from django.db import models, transaction

ROWS_AT_ONCE: Final = 1000

_M = TypeVar("_M", bound=models.Model)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOrder:
    """now: as of when. keep_days: what is over for so long may go, where a room has no rule of its
    own. is_dry: count and leave alone. is_over: asked between parts; what is left waits for the
    next time."""

    now: datetime
    keep_days: int
    is_dry: bool
    is_over: Callable[[], bool] = lambda: False

    @property
    def before(self) -> datetime:
        return self.now - timedelta(days=self.keep_days)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """name: as audit events and options say it. says: of what it returns the number, for people."""

    name: str
    says: str
    run: Callable[[PruneOrder], int]


_prunings: dict[str, Pruning] = {}


def pruning_register(pruning: Pruning) -> None:
    """Called by a room's ``ready``; the same again changes nothing."""
    _prunings[pruning.name] = pruning


def prunings() -> tuple[Pruning, ...]:
    return tuple(_prunings[name] for name in sorted(_prunings))


def rows_prune(rows: "models.QuerySet[_M]", order: PruneOrder) -> int:
    """Delete rows in parts, each locked in the order of the keys and in a transaction of its own:
    nobody waits long for them, and nobody who locks in that order can deadlock with it. Nothing may
    hang on the rows: what would go with them is not counted."""
    if order.is_dry:
        return rows.count()
    n_rows, last = 0, None
    while not order.is_over():
        with transaction.atomic():
            left = rows if last is None else rows.filter(pk__gt=last)
            found = left.order_by("pk").select_for_update().values_list("pk", flat=True)
            part = list(found[:ROWS_AT_ONCE])
            if part:
                rows.model._default_manager.filter(pk__in=part).delete()
        n_rows += len(part)
        if len(part) < ROWS_AT_ONCE:
            break
        last = part[-1]
    return n_rows


def things_prune(things: Iterable[_T], order: PruneOrder, *, remove: Callable[[_T], None]) -> int:
    """Remove things that are no rows; return how many."""
    n_things = 0
    for thing in things:
        if order.is_over():
            break
        if not order.is_dry:
            remove(thing)
        n_things += 1
    return n_things
