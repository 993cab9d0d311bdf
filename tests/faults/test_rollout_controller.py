"""`kill -9` of the controller at every point of every step of a rollout: what it leaves is as it
was before or as it is after, and whoever looks next goes on or back. What was counted is what the
ledger says, each request once."""

from collections.abc import Iterator
from math import log

import pytest

from apps.audit.types import Actor
from apps.metering.models import UsageRecord
from apps.rollouts.controller import tick
from apps.rollouts.models import Rollout, RolloutTally
from apps.rollouts.services import rollout_start
from apps.routing.models import Route
from tests.faults.killing import Doomed, doomed
from tests.integration.rollouts.places import (
    ONLY_ERRORS,
    QUICK,
    Place,
    actions,
    answered,
    failed,
    led,
    place,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db(transaction=True)

# Where it dies, and what the database has then of this look.
POINTS = {
    "begun": "nothing",
    "taken": "nothing",  # the rows of the ledger are marked, and nothing is committed
    "tallied": "nothing",  # one of two tallies is written
    "counted": "counted",
    "locked": "counted",
    "led": "counted",  # the route leads elsewhere
    "saved": "counted",  # and the rollout's row says so
    "told": "counted",  # and the audit trail
    "moved": "all",
}
IMPORTS = """
from apps.rollouts import controller, moving
from apps.rollouts.models import RolloutTally
"""
PLACES = """{
    "begun": (controller, "requests_count", before),
    "taken": (controller, "requests_take", after),
    "tallied": (RolloutTally, "save", after),
    "counted": (controller, "ready_ids", before),
    "locked": (controller, "_judged_change", before),
    "led": (moving, "route_update", after),
    "saved": (moving, "saved", after),
    "told": (moving, "event_record", after),
    "moved": (controller, "rollout_judge", after),
}"""


@pytest.fixture(scope="module")
def controllers(django_db_setup: None) -> Iterator[Doomed]:
    with doomed(imports=IMPORTS, places=PLACES, work="controller.tick()") as running:
        yield running


def begun(here: Place, actor: Actor) -> Rollout:
    return rollout_start(
        route=here.route,
        candidate=here.new,
        actor=actor,
        by=None,
        steps=QUICK,
        guardrails=ONLY_ERRORS,
    )


def check_whole(rollout: Rollout, here: Place) -> None:
    """The row, where the route leads, who holds it and the trail say the same."""
    rollout.refresh_from_db()
    arms = [f"r{rollout.pk}.{rollout.step}.{side}" for side in "cb"]
    weights = [(100, 900), (500, 500), (100, 0)][rollout.step]
    expected = {
        "running": [
            ("chat-new", weights[0], None, arms[0]),
            ("chat-old", weights[1], None, arms[1]),
        ],
        "completed": [("chat-new", 100, None, ""), ("chat-old", 0, None, "")],
        "rolled_back": [("chat-old", 100, None, "")],
    }
    assert led(here.route) == expected[rollout.state]
    is_open = rollout.state == "running"
    assert Route.objects.get().held_by == (f"rollout {rollout.pk}" if is_open else "")
    assert (rollout.ended_at is None) is is_open
    told = ["rollout.started", *["rollout.advanced"] * rollout.step]
    told += [] if is_open else [f"rollout.{rollout.state}"]
    assert actions() == told
    assert rollout.version == len(told)


def check_counted(rollout: Rollout) -> None:
    """Each tally is what an independent count of the ledger's rows gives that are marked."""
    for tally in RolloutTally.objects.filter(rollout=rollout):
        arm = f"r{rollout.pk}.{tally.step}.{tally.side[0]}"
        rows = list(all_of(UsageRecord).filter(rollout_arm=arm, is_in_rollout=True))
        n_failed = sum(row.outcome == "failed" for row in rows)
        assert (tally.n_requests, tally.n_failed) == (len(rows), n_failed)
        if rows:
            assert tally.sums["error_rate"][:3] == [len(rows), n_failed, len(rows)]
            logs = [round(1e6 * log(1000 * row.ttft_ms)) for row in rows if row.ttft_ms is not None]
            found = tally.sums.get("ttft", [0, 0])
            assert found[:2] == [len(logs), sum(logs)]


def n_counted() -> int:
    return int(all_of(UsageRecord).filter(is_in_rollout=True).count())


@pytest.mark.parametrize("point", POINTS)
def test_a_good_version(controllers: Doomed, actor: Actor, point: str) -> None:
    """Killed at each step of the way up, and at its end."""
    here = place()
    rollout = begun(here, actor)
    for step in range(3):
        assert (rollout.state, rollout.step) == ("running", step)
        answered(rollout, "candidate", 25, ttft_ms=100.0 + step)
        answered(rollout, "baseline", 40)
        before = n_counted()
        controllers.killed_at(point)
        left = POINTS[point]
        check_whole(rollout, here)
        check_counted(rollout)
        assert n_counted() - before == (0 if left == "nothing" else 65)
        assert (rollout.step > step or rollout.state == "completed") is (left == "all")
        if left != "all":
            tick()
            check_whole(rollout, here)
    check_counted(rollout)
    assert (rollout.state, n_counted()) == ("completed", 3 * 65)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step", [0, 1])
def test_a_bad_version(controllers: Doomed, actor: Actor, point: str, step: int) -> None:
    """Killed on the way back, of the first step and of a later one."""
    here = place()
    rollout = begun(here, actor)
    for _ in range(step):
        answered(rollout, "candidate", 25)
        tick()
        rollout.refresh_from_db()
    answered(rollout, "baseline", 200)
    answered(rollout, "candidate", 10)
    failed(rollout, "candidate", 30)
    controllers.killed_at(point)
    check_whole(rollout, here)
    check_counted(rollout)
    assert (rollout.state == "rolled_back") is (POINTS[point] == "all")
    tick()
    check_whole(rollout, here)
    check_counted(rollout)
    assert (rollout.state, rollout.step) == ("rolled_back", step)
    assert rollout.reason.startswith(f"Rolled back at {(10, 50)[step]} %: 30 of 40 requests")
    assert n_counted() == 240 + 25 * step
