"""Writes of the core room."""

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, TypeVar

from celery import current_app
from django.db import models
from django.db.models import F
from django.utils import timezone

from apps.core.models import ChangeStamp, Heartbeat

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=models.Model)

# By which Celery's processes are known to be at work.
WORKER: Final = "worker"
BEAT: Final = "beat"

_BEAT_EVERY: Final = timedelta(seconds=15)


def change_stamp_bump(name: str) -> None:
    """Raise a stamp by one in the caller's transaction; other processes see it once it commits."""
    moved = {"value": F("value") + 1, "moved_at": timezone.now()}
    if not ChangeStamp.objects.filter(name=name).update(**moved):
        stamp, created = ChangeStamp.objects.get_or_create(name=name, defaults={"value": 1})
        if not created:
            ChangeStamp.objects.filter(pk=stamp.pk).update(**moved)


def row_lock(row: M) -> M:
    """Return a row as it is now, and hold it for the caller's transaction."""
    return type(row)._default_manager.select_for_update(of=("self",)).get(pk=row.pk)


def model_changes(*, obj: models.Model, stored: models.Model) -> dict[str, list[Any]]:
    """Return field → [before, after] for the editable fields in which ``obj`` differs from
    ``stored``, in values that JSON can hold."""
    changes: dict[str, list[Any]] = {}
    for field in obj._meta.concrete_fields:
        before, after = field.value_from_object(stored), field.value_from_object(obj)
        if field.editable and before != after:
            changes[field.name] = [plain(before), plain(after)]
    return changes


def fields_set(obj: models.Model, fields: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Set the fields that differ; return field → [before, after], in values that JSON can hold."""
    changes: dict[str, list[Any]] = {}
    for name, after in fields.items():
        before = getattr(obj, name)
        if before != after:
            changes[name] = [plain(before), plain(after)]
            setattr(obj, name, after)
    return changes


def plain(value: Any) -> Any:
    """Return a value that JSON can hold: itself, or its text."""
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def heartbeat_note(name: str) -> None:
    """Say that a process of this kind is at work, at most once in some seconds over all of them."""
    now = timezone.now()
    if not Heartbeat.objects.filter(name=name, at__gt=now - _BEAT_EVERY).exists():
        Heartbeat.objects.update_or_create(name=name, defaults={"at": now})


def worker_wake(task: str, *, expires_s: float) -> None:
    """Tell a worker that there is something to do. That it cannot be told costs a few seconds and
    nothing else: the reapers look as well."""
    try:
        current_app.send_task(task, expires=expires_s, retry=False)
    except Exception as error:  # noqa: BLE001 - each broker's client has errors of its own
        logger.warning("No worker could be told of %s: %s", task, error)
