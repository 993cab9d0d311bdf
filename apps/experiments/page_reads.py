"""Reads that only the pages need."""

from collections.abc import Collection
from typing import Any, Final

from django.db.models import OuterRef, Subquery
from django.utils.text import slugify

from apps.experiments.models import Experiment, ExperimentMetric, Look

_NAME_CHARS: Final = 52
_EVENT_PREFIX: Final = "event:"


def experiment_name_free(wanted: str) -> str:
    """Return a name that no experiment has: the wanted one with the least number that is free."""
    stem = slugify(wanted)[:_NAME_CHARS].rstrip("-0123456789") or "experiment"
    taken = set(Experiment.objects.filter(name__startswith=stem).values_list("name", flat=True))
    return next(name for n in range(1, len(taken) + 2) if (name := f"{stem}-{n}") not in taken)


def event_names() -> list[str]:
    """Return the names of numbers that experiments were judged by before."""
    keys = ExperimentMetric.objects.filter(metric__startswith=_EVENT_PREFIX)
    found = keys.order_by("metric").values_list("metric", flat=True).distinct()
    return [key.removeprefix(_EVENT_PREFIX) for key in found]


def last_looks(ids: Collection[int]) -> dict[int, Any]:
    """Return what the last look at each of these experiments found, of those that were looked at,
    in one query."""
    newest = Look.objects.filter(experiment=OuterRef("pk")).order_by("-at", "-id")
    rows = Experiment.objects.filter(pk__in=ids).annotate(look_id=Subquery(newest.values("pk")[:1]))
    keys = rows.order_by().values("look_id")
    return dict(Look.objects.filter(pk__in=keys).values_list("experiment_id", "results"))
