"""Asks every room to clear away what is over, and does so with what belongs to none: sessions that
ran out, and logs."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.contrib.sessions.models import Session
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.pruning import (
    PruneOrder,
    Pruning,
    pruning_register,
    prunings,
    rows_prune,
    things_prune,
)
from apps.engines.selectors import engine_processes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """error: why there may be more; empty where all went well."""

    name: str
    says: str
    n: int
    error: str = ""


def register() -> None:
    pruning_register(Pruning(name="sessions", says="sessions that ran out", run=_sessions_prune))
    pruning_register(Pruning(name="logs", says="old logs", run=_logs_prune))


def platform_prune(
    *,
    actor: Actor,
    is_dry: bool,
    keep_days: int | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[Pruned, ...]:
    """Clear away what is over; what one room cannot do stops no other. The audit trail says how
    much of what went."""
    order = PruneOrder(
        now=timezone.now(),
        keep_days=settings.PRUNE_KEEP_DAYS if keep_days is None else keep_days,
        is_dry=is_dry,
        is_over=is_over,
    )
    found = tuple(_pruned(pruning, order) for pruning in prunings())
    gone = {each.name: each.n for each in found if each.n}
    if gone and not is_dry:
        event_record(
            action="platform.pruned", actor=actor, changes={"keep_days": order.keep_days, **gone}
        )
    return found


def _pruned(pruning: Pruning, order: PruneOrder) -> Pruned:
    n, error = 0, ""
    try:
        n = pruning.run(order)
    except Exception as failure:  # each room fails in its own way
        logger.exception("Pruning of %s failed", pruning.name)
        error = f"{type(failure).__name__}: {failure}"
    return Pruned(name=pruning.name, says=pruning.says, n=n, error=error)


def _sessions_prune(order: PruneOrder) -> int:
    return rows_prune(Session.objects.filter(expire_date__lt=order.now), order)


def _logs_prune(order: PruneOrder) -> int:
    return things_prune(_logs_old(order), order, remove=lambda file: file.unlink(missing_ok=True))


def _logs_old(order: PruneOrder) -> Iterator[Path]:
    """Yield logs that were put aside, or whose engine is no more, and are old by now."""
    directory = Path(settings.VAR_DIR) / "logs"
    known = {process.log_path for process in engine_processes()}
    orphans = (file for file in directory.glob("engine-*.log") if str(file) not in known)
    for file in (*sorted(directory.glob("*.log.1")), *sorted(orphans)):
        if file.stat().st_mtime < order.before.timestamp():
            yield file
