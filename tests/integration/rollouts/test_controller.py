"""What the controller makes of settled requests: it counts each once, goes on, and goes back."""

from datetime import timedelta

import pytest
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.selectors import change_stamps
from apps.deployments.models import Replica
from apps.rollouts import controller
from apps.rollouts.controller import tick
from apps.rollouts.models import Rollout, RolloutTally
from apps.rollouts.selectors import rollout_report
from apps.rollouts.services import rollout_approve, rollout_pause, rollout_start
from apps.rollouts.types import GuardrailSpec, StepSpec
from apps.routing.models import Route
from tests.factories import MetricEventFactory, UsageRecordFactory, UserFactory
from tests.integration.rollouts.places import (
    ONLY_ERRORS,
    QUICK,
    Place,
    actions,
    answered,
    everything,
    failed,
    led,
    place,
    uncounted,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def here() -> Place:
    return place()


def begun(here: Place, actor: Actor, **fields: object) -> Rollout:
    wanted: dict[str, object] = {"steps": QUICK, "guardrails": ONLY_ERRORS, **fields}
    return rollout_start(
        route=here.route,
        candidate=here.new,
        actor=actor,
        by=None,
        **wanted,  # type: ignore[arg-type]
    )


def again(rollout: Rollout) -> Rollout:
    rollout.refresh_from_db()
    return rollout


def test_a_good_version_gets_everything(here: Place, actor: Actor) -> None:
    rollout = begun(here, actor)
    for step, percent in enumerate((10, 50)):
        assert (again(rollout).step, led(here.route)[0][1]) == (step, percent * 10)
        answered(rollout, "candidate", 19)
        answered(rollout, "baseline", 100)
        assert tick().moved == ()  # one request too few
        answered(rollout, "candidate", 1)
        assert tick().moved == (rollout.pk,)
    assert led(here.route) == [
        ("chat-new", 100, None, f"r{rollout.pk}.2.c"),
        ("chat-old", 0, None, f"r{rollout.pk}.2.b"),
    ]
    tick()
    assert again(rollout).state == "completed"
    assert led(here.route) == [("chat-new", 100, None, ""), ("chat-old", 0, None, "")]
    assert Route.objects.get().held_by == ""
    assert actions() == ["rollout.started", "rollout.advanced", "rollout.advanced",
                         "rollout.completed"]  # fmt: skip
    before = everything()
    tick()
    assert everything() == before


def test_a_failing_version_is_taken_back(here: Place, actor: Actor) -> None:
    rollout = begun(here, actor)
    answered(rollout, "baseline", 300)
    answered(rollout, "candidate", 8)
    failed(rollout, "candidate", 23)
    assert tick().moved == (rollout.pk,)
    assert again(rollout).state == "rolled_back"
    assert rollout.reason.startswith(
        "Rolled back at 10 %: 23 of 31 requests of chat-new failed (old version: 0 of 300). "
        "The failure rate is at least "
    )
    assert rollout.reason.endswith(" points worse; 1 was allowed.")
    assert led(here.route) == [("chat-old", 100, None, "")]
    assert Route.objects.get().held_by == ""
    event = all_of(AuditEvent).filter(action="rollout.rolled_back").get()
    assert (event.actor_label, event.changes["breached"]) == ("rollout controller", "error_rate")
    assert event.changes["reason"] == rollout.reason
    assert event.changes["figures"]["error_rate"]["n"] == [300, 31]
    assert event.changes["percent"] == [10.0, 0.0]


@pytest.mark.parametrize("state", ["paused", "awaiting"])
def test_guardrails_guard_while_it_stands(here: Place, actor: Actor, state: str) -> None:
    rollout = begun(here, actor, approval="each")
    if state == "paused":
        rollout = rollout_pause(rollout=rollout, seen=1, actor=actor, by=None)
    answered(rollout, "baseline", 300)
    answered(rollout, "candidate", 20)
    tick()
    assert again(rollout).state == state
    failed(rollout, "candidate", 40)
    tick()
    assert again(rollout).state == "rolled_back"
    assert led(here.route) == [("chat-old", 100, None, "")]


def test_slow_is_worse(here: Place, actor: Actor) -> None:
    rollout = begun(here, actor, guardrails=(GuardrailSpec(metric="ttft", tolerance=0.25),))
    for n, (old_ms, new_ms) in enumerate([(100.0, 290.0), (110.0, 300.0), (120.0, 320.0)] * 60):
        answered(rollout, "baseline", 1, ttft_ms=old_ms + n % 7)
        answered(rollout, "candidate", 1, ttft_ms=new_ms + n % 7)
    tick()
    assert again(rollout).state == "rolled_back"
    assert rollout.reason.startswith(
        "Rolled back at 10 %: the time to the first token of chat-new is 306 ms over 180 requests "
        "(old version: 113 ms over 180). It is at least "
    )
    assert rollout.reason.endswith(" % longer; 25 % was allowed.")


def test_what_counts(here: Place, actor: Actor) -> None:
    """A client that left counts in no metric; what came from elsewhere, or was the route's way out,
    says nothing of the side; and a late row counts in the step that it is of."""
    rollout = begun(here, actor)
    answered(rollout, "candidate", 20)
    tick()
    assert again(rollout).step == 1
    answered(rollout, "candidate", 3, step=0)
    answered(rollout, "candidate", 2, outcome="aborted", finish_reason="")
    answered(rollout, "candidate", 1, attempt=2)
    answered(rollout, "candidate", 1, is_fallback=True)
    answered(rollout, "candidate", 1, n_completion_tokens=1)
    answered(rollout, "candidate", 1, finish_reason="content_filter")
    UsageRecordFactory(rollout_arm="r999999.0.c")
    UsageRecordFactory(rollout_arm="nonsense")
    ticked = tick()
    assert (ticked.n_requests, ticked.is_drained, uncounted()) == (11, True, 0)
    late, present = RolloutTally.objects.filter(side="candidate").order_by("step")
    assert (late.n_requests, late.step) == (23, 0)
    assert (present.n_requests, present.n_failed) == (4, 0)
    assert present.sums["error_rate"][:2] == [2, 0]
    assert present.sums["empty_rate"][:2] == [2, 2]
    assert RolloutTally.objects.filter(rollout_id=999999).count() == 0


def test_nothing_is_promoted_on_what_is_not_counted(here: Place, actor: Actor) -> None:
    rollout = begun(here, actor)
    answered(rollout, "candidate", 40)
    ticked = tick(rows_at_a_time=10, batches_at_most=3)
    assert (ticked.n_requests, ticked.is_drained, ticked.moved) == (30, False, ())
    assert tick(rows_at_a_time=10).moved == (rollout.pk,)


def test_time_and_requests_are_both_waited_for(here: Place, actor: Actor) -> None:
    steps = (StepSpec(percent=10, min_requests=5, min_minutes=10), StepSpec(percent=100))
    rollout = begun(here, actor, steps=steps)
    answered(rollout, "candidate", 5)
    assert tick().moved == ()
    Rollout.objects.update(step_started_at=timezone.now() - timedelta(minutes=11))
    assert tick().moved == (rollout.pk,)


def test_no_traffic_promotes_nothing_and_is_said(here: Place, actor: Actor) -> None:
    rollout = begun(here, actor)
    Rollout.objects.update(step_started_at=timezone.now() - timedelta(hours=3))
    assert tick().moved == ()
    report = rollout_report(rollout.pk)
    assert report is not None
    assert report.next_said == (
        "50 % follow once chat-new has answered 20 more requests. No request has come to it for "
        "180 minutes; it is not moved on without."
    )


@pytest.mark.parametrize(("approval", "waits"), [("each", {0, 1}), ("last", {1})])
def test_steps_wait_for_approval(here: Place, actor: Actor, approval: str, waits: set[int]) -> None:
    rollout = begun(here, actor, approval=approval)
    carol = UserFactory(username="carol")
    for step in (0, 1):
        answered(rollout, "candidate", 20)
        tick()
        assert (again(rollout).state == "awaiting") is (step in waits)
        if step in waits:
            assert rollout.step == step
            rollout = rollout_approve(rollout=rollout, seen=rollout.version, actor=actor, by=carol)
        assert (rollout.state, rollout.step) == ("running", step + 1)
    tick()
    assert again(rollout).state == "completed"
    assert actions().count("rollout.approved") == len(waits)
    assert actions().count("rollout.step_passed") == len(waits)


def test_a_lost_version_is_taken_back(
    here: Place, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = begun(here, actor)
    process = Replica.objects.get(deployment=here.new).engine_process
    type(process).objects.filter(pk=process.pk).update(state="backing_off")
    assert tick().moved == ()
    assert again(rollout).lost_at is not None
    type(process).objects.filter(pk=process.pk).update(state="ready")
    tick()
    assert again(rollout).lost_at is None  # back in time: it begins anew
    type(process).objects.filter(pk=process.pk).update(state="backing_off")
    tick()
    monkeypatch.setattr(controller.timezone, "now", lambda: late)
    late = rollout.created_at + timedelta(seconds=40)
    tick()
    assert again(rollout).state == "rolled_back"
    assert rollout.reason.startswith("Rolled back at 10 %: chat-new has had no ready replica for ")
    assert led(here.route) == [("chat-old", 100, None, "")]


def test_no_way_back_to_nothing(here: Place, actor: Actor) -> None:
    """After a restart of everything neither is ready for a while."""
    rollout = begun(here, actor)
    Replica.objects.all().delete()
    Rollout.objects.update(lost_at=timezone.now() - timedelta(hours=1))
    assert tick().moved == ()
    assert again(rollout).lost_at is None


def test_everything_is_judged_by_the_rates_of_the_step_before(here: Place, actor: Actor) -> None:
    steps = (
        StepSpec(percent=50, min_requests=20, min_minutes=0),
        StepSpec(percent=100, min_requests=1000, min_minutes=0),
    )
    rollout = begun(here, actor, steps=steps)
    answered(rollout, "baseline", 200)
    answered(rollout, "candidate", 200)
    tick()
    assert again(rollout).step == 1
    failed(rollout, "candidate", 60)
    answered(rollout, "candidate", 60)
    tick()
    assert again(rollout).state == "rolled_back"
    assert rollout.reason.startswith("Rolled back at 100 %: 60 of 120 requests of chat-new failed")


def test_thumbs_count_and_may_be_changed(here: Place, actor: Actor) -> None:
    rollout = begun(
        here, actor, guardrails=(GuardrailSpec(metric="thumbs_down_rate", tolerance=0.1),)
    )
    arms = {side: f"r{rollout.pk}.0.{side[0]}" for side in ("baseline", "candidate")}
    for _ in range(60):
        MetricEventFactory(rollout_arm=arms["baseline"])
    down = [MetricEventFactory(rollout_arm=arms["candidate"], value=0.0) for _ in range(5)]
    MetricEventFactory(rollout_arm=arms["candidate"], name="stars", value=0.0)
    MetricEventFactory(value=0.0)
    tick()
    mine = RolloutTally.objects.get(side="candidate", step=0)
    assert (mine.n_requests, mine.sums["thumbs_down_rate"][:3]) == (0, [5, 5, 5])
    type(down[0])._base_manager.filter(pk=down[0].pk).update(value=1.0, is_in_rollout=False)
    tick()
    mine.refresh_from_db()
    assert mine.sums["thumbs_down_rate"][:3] == [5, 4, 5]
    assert again(rollout).state == "running"
    for _ in range(40):
        MetricEventFactory(rollout_arm=arms["candidate"], value=0.0)
    tick()
    assert again(rollout).state == "rolled_back"
    assert rollout.reason.startswith(
        "Rolled back at 10 %: 44 of 45 ratings of chat-new were thumbs down (old version: 0 of 60)."
    )


def test_one_that_cannot_be_judged_does_not_hinder_others(actor: Actor) -> None:
    broken, fine = begun(place(name="a"), actor), begun(place(name="b"), actor)
    Rollout.objects.filter(pk=broken.pk).update(guardrails=[{"metric": "luck"}])
    answered(fine, "candidate", 20)
    assert tick().moved == (fine.pk,)
    assert again(broken).state == "running"


def test_a_look_without_news_says_nothing(here: Place, actor: Actor) -> None:
    rollout = begun(here, actor)
    before = change_stamps()
    tick()
    assert (change_stamps(), again(rollout).version) == (before, 1)
    answered(rollout, "baseline", 1)
    tick()
    assert change_stamps()["rollouts"] == before["rollouts"] + 1


def test_looks_are_bounded(
    here: Place, actor: Actor, django_assert_max_num_queries: object
) -> None:
    rollout = begun(here, actor)
    answered(rollout, "candidate", 50)
    answered(rollout, "baseline", 50)
    with django_assert_max_num_queries(80):  # type: ignore[operator]
        tick()
    with django_assert_max_num_queries(2):  # type: ignore[operator]
        assert rollout_report(rollout.pk) is not None
