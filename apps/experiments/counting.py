"""Settled requests and what was said of them, added to the subjects that they are of and to the
totals of their arms, each once.

One transaction takes rows from the ledger, marks them there, and moves everything that they move:
whatever happens, they are counted or they still wait. Experiments are locked first, in the order of
their ids, so that whoever counts one at the same time waits, and nobody can deadlock.

Every sum is of whole numbers, and what a subject added before is taken out of its arm's totals
before what it adds now goes in. So the totals are those of adding up the ledger in any order. A
subject that was seen in two arms is left out of all of them, from its first request on: only a
change of the weights moves subjects, and whoever had both says nothing of either.
"""

import logging
from collections.abc import Callable
from typing import Final

from django.db import connection, transaction

from apps.core.tenancy import every_tenant
from apps.experiments.assigning import subject_digest
from apps.experiments.metrics import EVENT_PREFIX, SUM_PREFIX
from apps.experiments.models import Experiment, ExperimentMetric
from apps.experiments.tallies import Batch
from apps.experiments.types import Arm, arms_read
from apps.feedback.services import events_take
from apps.feedback.types import ObservedEvent
from apps.metering.services import requests_take

logger = logging.getLogger(__name__)

ROWS_AT_MOST: Final = 20_000  # of one run; the next one goes on
_ROWS_AT_A_TIME: Final = {"sqlite": 200, "postgresql": 1000}  # on SQLite, requests wait meanwhile


@every_tenant("subjects of several tenants are in one experiment")
def rows_count(*, rows_at_a_time: int | None = None, rows_at_most: int = ROWS_AT_MOST) -> int:
    """Count what has settled and what was said of it; return how many rows those were.

    Requests go before events: what an end user did counts from their first request on.
    """
    limit = rows_at_a_time or _ROWS_AT_A_TIME[connection.vendor]
    n_rows = _all_of(requests_count, limit=limit, at_most=rows_at_most)
    return n_rows + _all_of(events_count, limit=limit, at_most=rows_at_most)


@every_tenant("subjects of several tenants are in one experiment")
@transaction.atomic
def requests_count(*, limit: int) -> int:
    """Count some requests that wait, the oldest first; return how many."""
    requests = requests_take("experiment", limit=limit)
    arms = [_arms(request.arm) for request in requests]
    batch = Batch.of(arm for each in arms for arm in each)
    for request, its_arms in zip(requests, arms, strict=True):
        for arm in its_arms:
            batch.request_add(arm, request)
    batch.save()
    return len(requests)


@every_tenant("subjects of several tenants are in one experiment")
@transaction.atomic
def events_count(*, limit: int) -> int:
    """Count some events that wait, the oldest first; return how many.

    One of a request is its arms'. One of an end user is of those experiments that assign by end
    user, have counted a request of theirs that came before it, and ran when it happened; else of
    none.
    """
    events = events_take("experiment", limit=limit)
    by_request = [(event, _arms(event.arm)) for event in events if event.request_id]
    by_person = _arms_of_people([event for event in events if not event.request_id])
    batch = Batch.of(arm for _, arms in (*by_request, *by_person) for arm in arms)
    for event, its_arms in by_request:
        for arm in its_arms:
            batch.event_add(arm, event)
    for event, its_subjects in by_person:
        for arm in its_subjects:
            batch.event_of_person_add(arm, event)
    batch.save()
    return len(events)


def _all_of(count: Callable[..., int], *, limit: int, at_most: int) -> int:
    n_rows = 0
    while n_rows < at_most:
        n_counted = count(limit=limit)
        n_rows += n_counted
        if n_counted < limit:
            break
    return n_rows


def _arms(text: str) -> tuple[Arm, ...]:
    """Return the arms that a row names; none where it cannot be read, so that one bad row does not
    hold up those after it."""
    try:
        return arms_read(text)
    except ValueError:
        logger.error("The arm %r names nothing", text)
        return ()


def _arms_of_people(events: list[ObservedEvent]) -> list[tuple[ObservedEvent, list[Arm]]]:
    """Return with each event the experiments that could count it; their arms are known to the
    subjects' own rows alone (variant 0 here)."""
    names = {event.name for event in events if event.end_user}
    if not names:
        return []
    keys = [prefix + name for name in names for prefix in (EVENT_PREFIX, SUM_PREFIX)]
    used = ExperimentMetric.objects.filter(
        metric__in=keys,
        experiment__subject=Experiment.Subject.END_USER,
        experiment__started_at__isnull=False,
    )
    wanted: dict[str, dict[int, str]] = {}
    for pk, salt, key in used.values_list("experiment_id", "experiment__salt", "metric"):
        wanted.setdefault(key.partition(":")[2], {})[pk] = salt
    return [
        (event, [_arm_of_person(pk, salt, event) for pk, salt in wanted[event.name].items()])
        for event in events
        if event.end_user and event.name in wanted
    ]


def _arm_of_person(experiment_id: int, salt: str, event: ObservedEvent) -> Arm:
    subject = subject_digest(
        salt=salt,
        kind=Experiment.Subject.END_USER.value,
        tenant_id=event.tenant_id,
        identifier=event.end_user,
    )
    return Arm(experiment_id=experiment_id, variant_id=0, subject=subject)
