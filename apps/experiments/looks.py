"""Looks at experiments that run: what is kept for the plot over time, and guardrails that stop.

A look costs no certainty, since every number of it holds at every look: there may be as many as one
likes. What is kept of them is thinned evenly.
"""

from datetime import datetime, timedelta
from typing import Final

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.core.tenancy import every_tenant
from apps.experiments.judging import breaches, ground_of, metric_lines
from apps.experiments.models import Experiment, Look
from apps.experiments.series import MOST_LOOKS, look_said
from apps.experiments.services import experiment_stop

EVERY: Final = timedelta(seconds=30)
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
