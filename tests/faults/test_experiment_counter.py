"""`kill -9` of whoever counts experiments, at every point: what it leaves is as it was before, or
as it is after, and whoever counts next makes it what the ledger says, each row once."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from apps.audit.models import AuditEvent
from apps.experiments.models import Assignment, Experiment, Look
from apps.experiments.tasks import count
from apps.feedback.models import MetricEvent
from apps.metering.models import UsageRecord
from tests.faults.killing import Doomed, doomed
from tests.integration.experiments.made import experiment, said, totals
from tests.integration.experiments.plenty import plenty
from tests.integration.experiments.recount import recount
from tests.rows import all_of

pytestmark = pytest.mark.django_db(transaction=True)

# Where it dies; what is there then: requests that are counted, events, a look.
POINTS = {
    "begun": (False, False, False),
    "taken": (False, False, False),
    "baselines": (False, False, False),
    "subjects": (False, False, False),
    "totals": (False, False, False),
    "requests": (True, False, False),
    "events taken": (True, False, False),
    "events": (True, True, False),
    "looked": (True, True, False),
    "stopping": (True, True, False),
    "stopped": (True, True, False),  # its transaction is the look's
    "done": (True, True, True),
}
IMPORTS = """
from apps.experiments import counting, looks, tallies, tasks
"""
PLACES = """{
    "begun": (counting, "requests_take", before),
    "taken": (counting, "requests_take", after),
    "baselines": (tallies.Batch, "_baselines_set", after),
    "subjects": (tallies, "_totals_move", before),
    "totals": (tallies, "_totals_move", after),
    "requests": (counting, "events_count", before),
    "events taken": (counting, "events_take", after),
    "events": (tasks, "looks_take", before),
    "looked": (looks, "looks_thin", after),
    "stopping": (looks, "experiment_stop", before),
    "stopped": (looks, "experiment_stop", after),
    "done": (tasks, "looks_take", after),
}"""


@pytest.fixture(scope="module")
def counters(django_db_setup: None) -> Iterator[Doomed]:
    with doomed(imports=IMPORTS, places=PLACES, work="tasks.count()") as running:
        yield running


def counted() -> tuple[int, int]:
    requests = all_of(UsageRecord).filter(is_in_experiments=True).count()
    return requests, all_of(MetricEvent).filter(is_in_experiments=True).count()


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(counters: Doomed, point: str) -> None:
    """Its guardrail breaks, so that the look that follows also stops it."""
    made: Any = experiment(pre_period_days=3)
    rows = plenty(made, n_people=150, n_requests=1, failing={"control": 0.01, "b": 0.5})
    for row in random.Random(1).sample(rows, 40):
        said(row, "feedback", 1.0)
    counters.killed_at(point)
    requests, events, look = POINTS[point]
    assert counted() == (150 if requests else 0, 40 if events else 0)
    assert all_of(Assignment).count() == (150 if requests else 0)
    assert all_of(Look).count() == int(look)
    if requests and events:
        assert totals(made) == recount(made)
    elif not requests:
        assert totals(made) == {}
    check_whole(made, is_stopped=look)
    count()
    assert counted() == (150, 40)
    assert totals(made) == recount(made)
    check_whole(made, is_stopped=True)


def check_whole(made: Experiment, *, is_stopped: bool) -> None:
    """The row and the trail say the same."""
    made.refresh_from_db()
    assert made.state == ("stopped" if is_stopped else "running")
    assert bool(made.stopped_because) is is_stopped
    told = all_of(AuditEvent).filter(action="experiment.stopped").count()
    assert told == int(is_stopped)
