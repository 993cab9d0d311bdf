"""Looks at experiments that run: what is kept for the plot over time, and guardrails that stop.

A look costs no certainty, since every number of it holds at every look: there may be as many as one
likes. What is kept of them is thinned evenly.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.core.tenancy import every_tenant
from apps.experiments.judging import Ground, ground_of, is_breached, metric_lines
from apps.experiments.mismatching import mismatch_of
from apps.experiments.models import Experiment, Look, Variant
from apps.experiments.results import MetricLine, SeriesEffect, SeriesPoint
from apps.experiments.services import experiment_stop
from apps.experiments.totals import n_requests_of, n_subjects_of
from apps.experiments.verdicts import breach_said

EVERY: Final = timedelta(seconds=30)
MOST_LOOKS: Final = 400  # of one experiment
_LATE: Final = timedelta(hours=1)  # after the stop, for requests that still ran
State: Final = Experiment.State


@every_tenant("subjects of several tenants are in one experiment")
def looks_take(*, now: datetime | None = None) -> int:
    """Look at every experiment that is due, each in its own transaction; return how many had
    news."""
    now = now or timezone.now()
    running = Q(state=State.RUNNING)
    late = Q(state=State.STOPPED, stopped_at__gt=now - _LATE, started_at__isnull=False)
    due = Q(looked_at=None) | Q(looked_at__lte=now - EVERY)
    pks = Experiment.objects.filter(running | late, due).order_by("pk").values_list("pk", flat=True)
    return sum(_look(pk, now) for pk in pks)


@transaction.atomic
def _look(pk: int, now: datetime) -> bool:
    """Look at one; stop it where a guardrail is broken. What is kept and what is done commit
    together."""
    experiment = (
        Experiment.objects.select_for_update(no_key=True, of=("self",)).filter(pk=pk).first()
    )
    if experiment is None or not _is_due(experiment, now):  # another process was here first
        return False
    ground = ground_of(experiment)
    lines = metric_lines(ground)
    found = look_said(ground, lines)
    Experiment.objects.filter(pk=pk).update(looked_at=now)
    last = Look.objects.filter(experiment=experiment).order_by("-at").first()
    has_news = last is None or last.results != found
    if has_news and any(found["subjects"].values()):
        Look.objects.create(experiment=experiment, at=now, results=found)
        looks_thin(experiment, now=now)
    if experiment.state == State.RUNNING and (broken := breaches(lines)):
        experiment_stop(
            experiment=experiment, seen=experiment.version, actor=SYSTEM, because=" ".join(broken)
        )
    return has_news


def breaches(lines: Iterable[MetricLine]) -> tuple[str, ...]:
    """Return which arms break which guardrails, in words."""
    return tuple(
        breach_said(line, effect)
        for line in lines
        for effect in line.effects
        if is_breached(line, effect)
    )


def look_said(ground: Ground, lines: Iterable[MetricLine]) -> dict[str, Any]:
    """Return a look as its row keeps it: by ids of variants, as texts."""
    ids = {each.name: str(each.pk) for each in ground.variants}
    return {
        "subjects": {str(each.pk): n_subjects_of(ground, each) for each in ground.variants},
        "requests": {str(each.pk): n_requests_of(ground, each) for each in ground.variants},
        "effects": {
            f"{line.key}/{line.role}": {
                ids[each.arm]: [
                    _number_said(number)
                    for number in (each.effect, each.low, each.high, each.p_value)
                ]
                for each in line.effects
            }
            for line in lines
        },
        "mismatch": mismatch_of(ground).p_value,
    }


def series_of(experiment: Experiment, variants: Iterable[Variant]) -> tuple[SeriesPoint, ...]:
    """Return the looks that were kept, the oldest first, in one query."""
    names = {str(each.pk): each.name for each in variants}
    rows = Look.objects.filter(experiment=experiment).order_by("at")
    return tuple(
        SeriesPoint(
            at=at,
            n_subjects=_named(said["subjects"], names),
            n_requests=_named(said["requests"], names),
            effects={
                key: _named({pk: _effect_read(numbers) for pk, numbers in arms.items()}, names)
                for key, arms in said["effects"].items()
            },
            mismatch=said["mismatch"],
        )
        for at, said in rows.values_list("at", "results")[: MOST_LOOKS + 1]
    )


def looks_thin(experiment: Experiment, *, now: datetime) -> None:
    """Keep the last look of each span of time; spans double as often as it takes to have no more
    than ``MOST_LOOKS`` of them."""
    began = experiment.started_at or experiment.created_at
    span = EVERY
    while (now - began) / span > MOST_LOOKS:
        span *= 2
    rows = list(Look.objects.filter(experiment=experiment).order_by("-at").values_list("pk", "at"))
    kept: set[int] = set()
    gone = []
    for pk, at in rows:
        place = (at - began) // span
        if place in kept:
            gone.append(pk)
        kept.add(place)
    if gone:
        Look.objects.filter(pk__in=gone).delete()


def _is_due(experiment: Experiment, now: datetime) -> bool:
    return experiment.looked_at is None or experiment.looked_at <= now - EVERY


def _number_said(number: float | None) -> float | str | None:
    """JSON has no infinity."""
    if number is None or abs(number) != float("inf"):
        return number
    return str(number)


def _effect_read(numbers: list[float | str | None]) -> SeriesEffect:
    effect, low, high, p_value = (None if n is None else float(n) for n in numbers)
    return SeriesEffect(effect=effect, low=low, high=high, p_value=p_value)


def _named(by_id: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names[pk]: value for pk, value in by_id.items() if pk in names}
