"""Rollouts as people move them: the state, the weights, the trail and the stamps together."""

import pytest
from django.core.exceptions import ValidationError

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.selectors import change_stamps
from apps.rbac.models import ApiToken, User
from apps.rollouts.exceptions import RolloutConflict, SecondPersonNeeded
from apps.rollouts.models import Rollout
from apps.rollouts.services import (
    rollout_abort,
    rollout_approve,
    rollout_pause,
    rollout_resume,
    rollout_start,
)
from apps.rollouts.types import StepSpec
from apps.routing.models import Route
from apps.routing.services import route_update
from apps.routing.types import all_to
from tests.factories import ApiTokenFactory, RouteTargetFactory, TenantFactory, UserFactory
from tests.integration.rollouts.places import QUICK, Place, actions, everything, led, place, ready
from tests.rows import all_of

pytestmark = pytest.mark.django_db
TOKEN = Actor(kind="token", id=3, label="a program")


@pytest.fixture
def here() -> Place:
    return place()


@pytest.fixture
def alice(db: None) -> User:
    return UserFactory(username="alice")


@pytest.fixture
def bob(db: None) -> User:
    return UserFactory(username="bob")


def started(here: Place, actor: Actor, by: User | None, **fields: object) -> Rollout:
    return rollout_start(
        route=here.route,
        candidate=here.new,
        actor=actor,
        by=by,
        **{"steps": QUICK, **fields},  # type: ignore[arg-type]
    )


def test_start(here: Place, actor: Actor, alice: User) -> None:
    rollout = started(here, actor, alice)
    assert (rollout.state, rollout.step, rollout.version) == ("running", 0, 1)
    assert led(here.route) == [
        ("chat-new", 100, None, f"r{rollout.pk}.0.c"),
        ("chat-old", 900, None, f"r{rollout.pk}.0.b"),
    ]
    assert Route.objects.get().held_by == f"rollout {rollout.pk}"
    assert rollout.targets_before == [[here.old.pk, 100, None]]
    assert (rollout.started_by, rollout.started_by_name) == (alice, "alice")
    events = list(all_of(AuditEvent).order_by("pk"))
    assert [event.action for event in events] == ["route.updated", "rollout.started"]
    facts = events[1].changes
    assert (facts["from"], facts["to"], facts["by"]) == ("chat-old", "chat-new", "alice")
    assert [step["percent"] for step in facts["steps"]] == [10, 50, 100]
    assert change_stamps().keys() >= {"routes", "rollouts"}


def test_others_keep_their_proportion(here: Place, actor: Actor, alice: User) -> None:
    RouteTargetFactory(route=here.route, deployment=ready("chat-third"), weight=50)
    backup = RouteTargetFactory(
        route=here.route, deployment=ready("z-backup"), weight=0, fallback_order=1
    )
    rollout = started(here, actor, alice, baseline=here.old)
    weights = {name: (weight, order) for name, weight, order, _ in led(here.route)}
    old, new, third = (weights[f"chat-{each}"][0] for each in ("old", "new", "third"))
    assert new / (old + new) == pytest.approx(0.1, rel=0.01)
    assert third / (old + new) == pytest.approx(0.5, rel=0.01)
    assert weights["z-backup"] == (0, 1)
    rollout_abort(rollout=rollout, seen=1, actor=actor, by=alice)
    assert led(here.route) == [
        ("chat-old", 100, None, ""),
        ("chat-third", 50, None, ""),
        ("z-backup", 0, backup.fallback_order, ""),
    ]


def test_the_route_is_held(here: Place, actor: Actor, alice: User) -> None:
    started(here, actor, alice)
    before = everything()
    with pytest.raises(ValidationError):
        route_update(route=here.route, actor=actor, targets=all_to(here.old))
    assert everything() == before


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"steps": ()}, "steps"),
        ({"steps": (StepSpec(percent=10),)}, "steps"),
        ({"steps": (StepSpec(percent=50), StepSpec(percent=50), StepSpec(percent=100))}, "steps"),
        ({"steps": (StepSpec(percent=0), StepSpec(percent=100))}, "steps"),
        ({"steps": (StepSpec(percent=float("nan")), StepSpec(percent=100))}, "steps"),
        ({"steps": (StepSpec(percent=1, min_requests=-1), StepSpec(percent=100))}, "steps"),
        ({"steps": (StepSpec(percent=1, min_minutes=1e9), StepSpec(percent=100))}, "steps"),
        ({"alpha": 0.9}, "alpha"),
        ({"approval": "perhaps"}, "approval"),
        ({"guardrails": ({"metric": "luck", "tolerance": 0.1},)}, "guardrails"),
        ({"guardrails": ({"metric": "ttft", "tolerance": float("inf")},)}, "guardrails"),
        ({"guardrails": ({"metric": "ttft", "tolerance": 0.1},) * 2}, "guardrails"),
        ({"needs_second_person": True, "by": None}, "by"),
    ],
)
def test_what_cannot_start_changes_nothing(
    here: Place, actor: Actor, alice: User, wrong: dict[str, object], field: str
) -> None:
    from apps.rollouts.types import GuardrailSpec

    if "guardrails" in wrong:
        wrong = {"guardrails": tuple(GuardrailSpec(**each) for each in wrong["guardrails"])}  # type: ignore[attr-defined]
    before = everything()
    with pytest.raises(ValidationError) as refused:
        started(here, actor, **{"by": alice, **wrong})  # type: ignore[arg-type]
    assert list(refused.value.message_dict) == [field]
    assert everything() == before


def test_the_new_one_must_be_ready_and_new(here: Place, actor: Actor, alice: User) -> None:
    from apps.deployments.models import Replica

    Replica.objects.filter(deployment=here.new).delete()
    before = everything()
    with pytest.raises(ValidationError, match="no ready replica"):
        started(here, actor, alice)
    with pytest.raises(ValidationError, match="gets a share of this route already"):
        rollout_start(route=here.route, candidate=here.old, actor=actor, by=alice)
    assert everything() == before


def test_which_one_it_replaces_must_be_clear(here: Place, actor: Actor, alice: User) -> None:
    RouteTargetFactory(route=here.route, deployment=ready("chat-third"), weight=50)
    before = everything()
    with pytest.raises(ValidationError, match="Say which one") as refused:
        started(here, actor, alice)
    assert list(refused.value.message_dict) == ["baseline"]
    with pytest.raises(ValidationError, match="gets no share"):
        started(here, actor, alice, baseline=ready("elsewhere"))
    assert everything() == before


def test_a_share_that_cannot_be_given(here: Place, actor: Actor, alice: User) -> None:
    here.route.targets.update(weight=1)
    RouteTargetFactory(route=here.route, deployment=ready("chat-third"), weight=1000)
    before = everything()
    with pytest.raises(ValidationError, match="10 % cannot be given"):
        started(here, actor, alice, baseline=here.old)
    assert everything() == before


def test_one_at_a_time(here: Place, actor: Actor, alice: User) -> None:
    started(here, actor, alice)
    before = everything()
    with pytest.raises(RolloutConflict, match="has not ended"):
        started(here, actor, alice)
    assert everything() == before


def test_pause_and_resume(here: Place, actor: Actor, alice: User) -> None:
    rollout = started(here, actor, alice)
    traffic = led(here.route)
    rollout = rollout_pause(rollout=rollout, seen=1, actor=actor, by=alice, reason="Lunch.")
    assert (rollout.state, rollout.version, rollout.reason) == ("paused", 2, "Lunch.")
    rollout = rollout_resume(rollout=rollout, seen=2, actor=actor, by=alice)
    assert (rollout.state, rollout.version, rollout.reason) == ("running", 3, "")
    assert led(here.route) == traffic
    assert actions() == ["rollout.started", "rollout.paused", "rollout.resumed"]


@pytest.mark.parametrize("service", [rollout_approve, rollout_pause, rollout_resume, rollout_abort])
def test_a_stale_click_changes_nothing(
    here: Place, actor: Actor, alice: User, bob: User, service: object
) -> None:
    rollout = started(here, actor, alice)
    rollout_pause(rollout=rollout, seen=1, actor=actor, by=alice)
    before = everything()
    with pytest.raises(RolloutConflict, match="changed meanwhile") as refused:
        service(rollout=rollout, seen=1, actor=actor, by=bob)  # type: ignore[operator]
    assert refused.value.status == 409
    assert everything() == before


@pytest.mark.parametrize("service", [rollout_approve, rollout_pause, rollout_resume, rollout_abort])
def test_nothing_moves_what_has_ended(
    here: Place, actor: Actor, alice: User, bob: User, service: object
) -> None:
    rollout = started(here, actor, alice)
    rollout = rollout_abort(rollout=rollout, seen=1, actor=actor, by=alice, reason="No.")
    assert (rollout.state, rollout.ended_at is None) == ("aborted", False)
    assert Route.objects.get().held_by == ""
    before = everything()
    with pytest.raises(RolloutConflict, match="the rollout was aborted"):
        service(rollout=rollout, seen=2, actor=actor, by=bob)  # type: ignore[operator]
    assert everything() == before


# -- two persons ------------------------------------------------------------------------------


def test_nothing_moves_before_the_second_person(
    here: Place, actor: Actor, alice: User, bob: User
) -> None:
    rollout = started(here, actor, alice, needs_second_person=True)
    assert rollout.state == "pending"
    assert led(here.route) == [("chat-old", 100, None, "")]
    assert Route.objects.get().held_by
    rollout = rollout_approve(rollout=rollout, seen=1, actor=actor, by=bob, reason="Fine.")
    assert (rollout.state, rollout.approved_step) == ("running", 0)
    assert [name for name, weight, *_ in led(here.route) if weight] == ["chat-new", "chat-old"]
    event = all_of(AuditEvent).filter(action="rollout.approved").get()
    assert event.changes == {
        "state": ["pending", "running"], "percent": [0.0, 10.0], "reason": "Fine.", "by": "bob",
    }  # fmt: skip


@pytest.mark.parametrize("who", ["person", "their token", "nobody's token", "nobody"])
def test_nobody_approves_their_own(here: Place, actor: Actor, alice: User, who: str) -> None:
    """Through whichever door: what counts is the person, also behind a token."""
    rollout = started(here, actor, alice, needs_second_person=True)
    before = everything()
    with pytest.raises(SecondPersonNeeded) as refused:
        rollout_approve(
            rollout=rollout,
            seen=1,
            actor=TOKEN if "token" in who else actor,
            by=alice if who in ("person", "their token") else None,
        )
    assert refused.value.status == 403
    assert everything() == before


def test_nobodys_token_approves_nothing(here: Place, actor: Actor, alice: User) -> None:
    rollout = started(here, actor, alice)
    before = everything()
    with pytest.raises(SecondPersonNeeded):
        rollout_approve(rollout=rollout, seen=1, actor=TOKEN, by=None)
    assert everything() == before


def tokens_of(person: User, others: User) -> dict[str, ApiToken]:
    service = UserFactory(is_service=True)
    return {
        "own token": ApiTokenFactory(owner=person, created_by=person),
        "token that another made": ApiTokenFactory(owner=person, created_by=others),
        "token that the platform made": ApiTokenFactory(owner=person, created_by=None),
        "service account's": ApiTokenFactory(owner=service, created_by=others),
    }


@pytest.mark.parametrize(
    ("which", "is_known"),
    [
        ("own token", True),
        ("token that another made", False),
        ("token that the platform made", False),
        ("service account's", False),
    ],
)
def test_who_approves_is_who_holds_the_token(
    here: Place, actor: Actor, alice: User, bob: User, which: str, is_known: bool
) -> None:
    """Alice could have made each of the others, and hold it."""
    rollout = started(here, actor, alice, needs_second_person=True)
    token = tokens_of(bob, alice)[which]
    as_token = Actor(kind="token", id=token.pk, label=str(token))
    before = everything()
    if is_known:
        approved = rollout_approve(rollout=rollout, seen=1, actor=as_token, by=token.owner)
        assert approved.state == "running"
        return
    with pytest.raises(SecondPersonNeeded, match="which person"):
        rollout_approve(rollout=rollout, seen=1, actor=as_token, by=token.owner)
    assert everything() == before


@pytest.mark.parametrize("which", ["token that another made", "service account's"])
def test_who_starts_is_who_holds_the_token(
    here: Place, actor: Actor, alice: User, bob: User, which: str
) -> None:
    token = tokens_of(bob, alice)[which]
    as_token = Actor(kind="token", id=token.pk, label=str(token))
    before = everything()
    with pytest.raises(ValidationError, match="has to be known who starts it"):
        started(here, as_token, token.owner, needs_second_person=True)
    assert everything() == before
    assert started(here, as_token, token.owner).state == "running"


@pytest.mark.parametrize(
    ("is_restricted", "is_among", "is_active", "demanded"),
    [
        (False, False, True, True),
        (True, True, True, True),
        (True, False, True, False),
        (True, True, False, False),
    ],
)
def test_a_tenant_demands_two(
    here: Place, actor: Actor, alice: User, is_restricted: bool, is_among: bool, is_active: bool,
    demanded: bool,
) -> None:  # fmt: skip
    tenant = TenantFactory(needs_second_person=True, is_active=is_active)
    Route.objects.update(is_restricted=is_restricted)
    if is_among:
        here.route.tenants.add(tenant)
    rollout = started(here, actor, alice)
    assert rollout.needs_second_person is demanded
    assert rollout.state == ("pending" if demanded else "running")
