"""Twenty at once: one wins, the others are told so, and the trail says what the rows say."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from django.conf import settings
from django.db import connection

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.rollouts.controller import tick
from apps.rollouts.exceptions import RolloutConflict
from apps.rollouts.models import Rollout, RolloutTally
from apps.rollouts.services import rollout_abort, rollout_approve, rollout_pause, rollout_start
from apps.routing.models import Route
from tests.factories import UserFactory
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

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        "sqlite" in settings.DATABASES["default"]["ENGINE"],
        reason="SQLite lets one write at a time, so nothing is at once; PostgreSQL's",
    ),
]
N = 20


@pytest.fixture
def here() -> Place:
    return place()


def at_once(acts: list[Callable[[], object]]) -> Counter[str]:
    """Do all of them in threads of their own, begun together; return what came of how many."""
    gate = Barrier(len(acts))

    def one(act: Callable[[], object]) -> str:
        try:
            gate.wait(timeout=30)
            act()
        except RolloutConflict as refused:
            assert refused.status == 409
            assert refused.message
            return "conflict"
        finally:
            connection.close()
        return "done"

    with ThreadPoolExecutor(len(acts)) as pool:
        return Counter(pool.map(one, acts))


def begun(here: Place, actor: Actor, **fields: object) -> Rollout:
    wanted: dict[str, object] = {"steps": QUICK, "guardrails": ONLY_ERRORS, **fields}
    return rollout_start(
        route=here.route,
        candidate=here.new,
        actor=actor,
        by=UserFactory(),
        **wanted,  # type: ignore[arg-type]
    )


def check_trail(rollout: Rollout) -> None:
    """The trail, read in its order, ends in the state that the row has, without a gap."""
    rows = all_of(AuditEvent).filter(action__startswith="rollout.", object_id=str(rollout.pk))
    first, *rest = rows.order_by("pk")
    state = first.changes["state"]
    for event in rest:
        assert event.changes["state"][0] == state
        state = event.changes["state"][1]
    rollout.refresh_from_db()
    assert rollout.state == state
    assert rollout.version == 1 + len(rest)
    is_open = rollout.state in Rollout.OPEN
    assert Route.objects.get().held_by == (f"rollout {rollout.pk}" if is_open else "")


def test_start(here: Place, actor: Actor) -> None:
    people = [UserFactory() for _ in range(N)]

    def start(number: int) -> object:
        return rollout_start(
            route=here.route, candidate=here.new, actor=actor, by=people[number], steps=QUICK
        )

    assert at_once([lambda n=n: start(n) for n in range(N)]) == {"done": 1, "conflict": N - 1}  # type: ignore[misc]
    rollout = Rollout.objects.get()
    check_trail(rollout)
    assert actions() == ["rollout.started"]
    assert led(here.route) == [
        ("chat-new", 100, None, f"r{rollout.pk}.0.c"),
        ("chat-old", 900, None, f"r{rollout.pk}.0.b"),
    ]


@pytest.mark.parametrize("state", ["pending", "awaiting"])
def test_approve_and_abort(here: Place, actor: Actor, state: str) -> None:
    rollout = begun(here, actor, approval="each", needs_second_person=state == "pending")
    if state == "awaiting":
        answered(rollout, "candidate", 20)
        tick()
        rollout.refresh_from_db()
    seen, told = rollout.version, len(actions())
    people = [UserFactory() for _ in range(N)]

    def click(number: int) -> object:
        service = (rollout_approve, rollout_abort)[number % 2]
        return service(rollout=rollout, seen=seen, actor=actor, by=people[number])

    assert at_once([lambda n=n: click(n) for n in range(N)]) == {"done": 1, "conflict": N - 1}  # type: ignore[misc]
    check_trail(rollout)
    [action] = actions()[told:]
    if action == "rollout.aborted":
        assert led(here.route) == [("chat-old", 100, None, "")]
    else:
        step = 0 if state == "pending" else 1
        assert (action, rollout.step) == ("rollout.approved", step)
        assert led(here.route)[0][3] == f"r{rollout.pk}.{step}.c"


def test_controllers_and_people(here: Place, actor: Actor) -> None:
    """Ten controllers beside ten who abort or pause: each request is counted once, and it is rolled
    back, aborted or first paused, by one of them each."""
    rollout = begun(here, actor)
    answered(rollout, "baseline", 150)
    answered(rollout, "candidate", 15)
    failed(rollout, "candidate", 40)
    acts: list[Callable[[], object]] = [lambda: tick(rows_at_a_time=20)] * (N // 2)
    for number in range(N // 2):
        service = (rollout_abort, rollout_pause)[number % 2]
        acts.append(
            lambda service=service: service(rollout=rollout, seen=1, actor=actor, by=None)  # type: ignore[misc]
        )
    came = at_once(acts)
    assert came["done"] - N // 2 <= 1
    tick()
    check_trail(rollout)
    assert rollout.state in ("rolled_back", "aborted")
    assert len(actions()) == len(set(actions()))
    counted = {row.side: (row.n_requests, row.n_failed) for row in RolloutTally.objects.all()}
    assert counted == {"baseline": (150, 0), "candidate": (55, 40)}
    assert led(here.route) == [("chat-old", 100, None, "")]


def test_controllers_move_on_by_one_each(here: Place, actor: Actor) -> None:
    rollout = begun(here, actor)
    answered(rollout, "candidate", 20)
    at_once([lambda: tick(rows_at_a_time=5)] * 8)
    check_trail(rollout)
    assert (rollout.state, rollout.step) == ("running", 1)
    assert actions() == ["rollout.started", "rollout.advanced"]
