"""Reads of the core room."""

from datetime import datetime

from apps.core.models import ChangeStamp, Heartbeat


def change_stamps() -> dict[str, int]:
    """Return every stamp by name, in one query."""
    return dict(ChangeStamp.objects.values_list("name", "value"))


def heartbeats() -> dict[str, datetime]:
    """Return when each kind of process was last heard of; those that never were are left out."""
    return dict(Heartbeat.objects.values_list("name", "at"))
