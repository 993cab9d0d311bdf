"""Reads of the core room."""

from apps.core.models import ChangeStamp


def change_stamps() -> dict[str, int]:
    """Return every stamp by name, in one query."""
    return dict(ChangeStamp.objects.values_list("name", "value"))
