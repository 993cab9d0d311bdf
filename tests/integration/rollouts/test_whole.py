"""A failure anywhere between a change and its audit event: neither is there, or both."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import DatabaseError, connection
from django.utils import timezone

from apps.audit.types import Actor
from apps.core.services import change_stamp_bump
from apps.deployments.models import Replica
from apps.rollouts.controller import requests_count, tick
from apps.rollouts.models import Rollout
from apps.rollouts.services import (
    rollout_abort,
    rollout_approve,
    rollout_pause,
    rollout_resume,
    rollout_start,
)
from tests.factories import UserFactory
from tests.integration.rollouts.places import (
    ONLY_ERRORS,
    QUICK,
    Place,
    actions,
    answered,
    everything,
    failed,
    place,
)

pytestmark = pytest.mark.django_db
Act = Callable[[], object]

# Where a write of the database fails: table, and which of its rows.
FAILURES = {
    "the event of the rollout": ("audit_auditevent", "INSERT", "NEW.action LIKE 'rollout.%'"),
    "the event of the route": ("audit_auditevent", "INSERT", "NEW.action = 'route.updated'"),
    "the stamp of rollouts": ("core_changestamp", "UPDATE", "NEW.name = 'rollouts'"),
    "a target of the route": ("routing_routetarget", "INSERT", "NEW.weight >= 0"),
    "the rollout's row": ("rollouts_rollout", "UPDATE", "NEW.version > OLD.version"),
}


@contextmanager
def failing(table: str, verb: str, when: str) -> Iterator[None]:
    """Let the database refuse such writes until the block ends."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(
                f"CREATE TRIGGER injected BEFORE {verb} ON {table} WHEN {when} "
                "BEGIN SELECT RAISE(ABORT, 'injected'); END"
            )
        else:
            cursor.execute(
                "CREATE FUNCTION injected() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'injected'; END $$"
            )
            cursor.execute(
                f"CREATE TRIGGER injected BEFORE {verb} ON {table} FOR EACH ROW "
                f"WHEN ({when}) EXECUTE FUNCTION injected()"
            )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            if connection.vendor == "sqlite":
                cursor.execute("DROP TRIGGER injected")
            else:
                cursor.execute(f"DROP TRIGGER injected ON {table}")
                cursor.execute("DROP FUNCTION injected()")


def made(here: Place, actor: Actor, **fields: object) -> Rollout:
    wanted: dict[str, object] = {"steps": QUICK, "guardrails": ONLY_ERRORS, **fields}
    return rollout_start(
        route=here.route,
        candidate=here.new,
        actor=actor,
        by=UserFactory(),
        **wanted,  # type: ignore[arg-type]
    )


def at_awaiting(here: Place, actor: Actor) -> Rollout:
    rollout = made(here, actor, approval="each")
    answered(rollout, "candidate", 20)
    tick()
    rollout.refresh_from_db()
    assert rollout.state == "awaiting"
    return rollout


def at_last_step(here: Place, actor: Actor) -> Rollout:
    rollout = made(here, actor)
    for _ in range(2):
        answered(rollout, "candidate", 20)
        tick()
        rollout.refresh_from_db()
    assert (rollout.state, rollout.step) == ("running", 2)
    return rollout


def acts(name: str, here: Place, actor: Actor) -> Act:
    """Return what is to be done once, with everything before it done."""
    someone = UserFactory()
    change_stamp_bump("rollouts")  # there is one to move

    def click(service: Callable[..., Rollout], rollout: Rollout) -> Act:
        return lambda: service(rollout=rollout, seen=rollout.version, actor=actor, by=someone)

    match name:
        case "start":
            return lambda: made(here, actor)
        case "start and wait":
            return lambda: made(here, actor, needs_second_person=True)
        case "approve the start":
            return click(rollout_approve, made(here, actor, needs_second_person=True))
        case "approve a step":
            return click(rollout_approve, at_awaiting(here, actor))
        case "pause":
            return click(rollout_pause, made(here, actor))
        case "resume":
            rollout = made(here, actor)
            return click(
                rollout_resume, rollout_pause(rollout=rollout, seen=1, actor=actor, by=someone)
            )
        case "abort":
            return click(rollout_abort, made(here, actor))
        case "go on":
            answered(made(here, actor), "candidate", 20)
        case "complete":
            at_last_step(here, actor)
        case "roll back":
            rollout = made(here, actor)
            answered(rollout, "baseline", 200)
            failed(rollout, "candidate", 20)
        case "lose the new one":
            made(here, actor)
            Replica.objects.filter(deployment=here.new).delete()
            Rollout.objects.update(lost_at=timezone.now() - timedelta(minutes=1))
    requests_count(limit=1000)
    return tick


# What changes where the route leads, and what does not.
MOVES_TRAFFIC = ["start", "approve the start", "approve a step", "abort", "go on", "complete",
                 "roll back", "lose the new one"]  # fmt: skip
STAYS = ["start and wait", "pause", "resume"]
SAME_WEIGHTS = "complete"  # only what the ledger says of them changes: the route tells nothing
CASES = [
    *((act, failure) for act in MOVES_TRAFFIC for failure in FAILURES
      if (act, failure) != (SAME_WEIGHTS, "the event of the route")),
    *((act, failure) for act in STAYS for failure in FAILURES if "route" not in failure),
]  # fmt: skip


@pytest.mark.parametrize(("name", "failure"), CASES)
def test_neither_or_both(name: str, failure: str, actor: Actor) -> None:
    act = acts(name, place(), actor)
    before, told = everything(), actions()
    with failing(*FAILURES[failure]):
        if act is tick:
            assert tick().moved == ()  # it is logged, and others go on
        else:
            with pytest.raises(DatabaseError, match="injected"):
                act()
        assert everything() == before
    act()
    after = everything()
    assert len(actions()) == len(told) + 1
    assert after["rollouts"] != before["rollouts"]
    assert (after["targets"] != before["targets"]) is (name in MOVES_TRAFFIC)
