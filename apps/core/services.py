"""Writes of the core room."""

from django.db.models import F

from apps.core.models import ChangeStamp


def change_stamp_bump(name: str) -> None:
    """Raise a stamp by one in the caller's transaction; other processes see it once it commits."""
    if not ChangeStamp.objects.filter(name=name).update(value=F("value") + 1):
        stamp, created = ChangeStamp.objects.get_or_create(name=name, defaults={"value": 1})
        if not created:
            ChangeStamp.objects.filter(pk=stamp.pk).update(value=F("value") + 1)
