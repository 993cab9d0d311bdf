"""What is told of a rollout: where it is, what will happen next, and who may approve."""

from collections.abc import Callable

import pytest
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.rbac.models import User
from apps.rollouts.controller import tick
from apps.rollouts.models import Rollout
from apps.rollouts.selectors import (
    Asked,
    open_rollout_of,
    rollout_check,
    rollout_report,
    rollouts_visible_to,
)
from apps.rollouts.services import rollout_abort, rollout_pause, rollout_start
from apps.rollouts.types import StepSpec
from apps.tenants.models import Tenant
from tests.factories import RouteTargetFactory, TenantFactory, UserFactory
from tests.integration.rollouts.places import (
    QUICK,
    Place,
    answered,
    everything,
    failed,
    place,
    ready,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def here() -> Place:
    return place()


@pytest.fixture
def alice(db: None) -> User:
    return UserFactory(username="alice")


@pytest.fixture
def start(here: Place, actor: Actor, alice: User) -> Callable[..., Rollout]:
    def started(**fields: object) -> Rollout:
        wanted: dict[str, object] = {"steps": QUICK, **fields}
        return rollout_start(
            route=here.route,
            candidate=here.new,
            actor=actor,
            by=alice,
            **wanted,  # type: ignore[arg-type]
        )

    return started


def test_while_it_runs(start: Callable[..., Rollout], here: Place) -> None:
    rollout = start()
    answered(rollout, "candidate", 5)
    answered(rollout, "baseline", 50)
    failed(rollout, "baseline", 1)
    tick()
    report = rollout_report(rollout.pk)
    assert report is not None
    assert (report.state, report.percent, report.step, report.tone) == ("running", 10.0, 0, "busy")
    assert report.next_said == "50 % follow once chat-new has answered 15 more requests."
    present, following, last = report.steps
    assert (present.is_present, present.is_past, following.is_present) == (True, False, False)
    assert (present.n_baseline, present.n_candidate, present.n_failed) == (51, 5, 0)
    assert [line.metric for line in present.guardrails] == [
        "error_rate", "ttft", "itl", "empty_rate", "thumbs_down_rate",
    ]  # fmt: skip
    assert present.guardrails[0].baseline == "1.96 %"
    assert (following.guardrails, last.started_at) == ((), None)
    assert open_rollout_of(here.route) == rollout


def test_minutes_are_told(start: Callable[..., Rollout]) -> None:
    rollout = start(
        steps=(StepSpec(percent=1, min_requests=1, min_minutes=30), StepSpec(percent=100))
    )
    report = rollout_report(rollout.pk)
    assert report is not None
    assert report.next_said == (
        "100 % follow once chat-new has answered 1 more request and 30 more minutes have passed."
    )


def test_when_it_stands_or_has_ended(
    start: Callable[..., Rollout], actor: Actor, alice: User
) -> None:
    rollout = start()
    rollout = rollout_pause(rollout=rollout, seen=1, actor=actor, by=alice)
    report = rollout_report(rollout.pk)
    assert report is not None
    assert report.next_said == (
        "It stays at 10 % until somebody resumes it. Guardrails still guard."
    )
    rollout_abort(rollout=rollout, seen=2, actor=actor, by=alice, reason="Not today.")
    report = rollout_report(rollout.pk)
    assert report is not None
    assert (report.state, report.percent, report.reason, report.next_said) == (
        "aborted", 0.0, "Not today.", "",
    )  # fmt: skip
    assert rollout_report(rollout.pk + 1) is None


def test_who_may_approve(start: Callable[..., Rollout], alice: User) -> None:
    rollout = start(needs_second_person=True)
    said = {}
    for name, by in (("alice", alice), ("bob", UserFactory(username="bob")), ("nobody", None)):
        report = rollout_report(rollout.pk, by=by)
        assert report is not None
        said[name] = (report.may_approve, report.refused_said)
    assert said == {
        "alice": (False, "You started it; somebody else has to approve it."),
        "bob": (True, ""),
        "nobody": (False, "Only somebody can approve it: a token of nobody cannot."),
    }
    assert report.next_said == (
        "No request goes to chat-new until somebody other than alice approves it; then 10 % do."
    )


def test_whose_rollouts_are_seen(start: Callable[..., Rollout], here: Place) -> None:
    rollout = start()
    assert list(rollouts_visible_to(UserFactory(admin=True))) == [rollout]
    assert list(rollouts_visible_to(UserFactory())) == []


def test_a_check_changes_nothing(here: Place) -> None:
    RouteTargetFactory(route=here.route, deployment=ready("chat-third"), weight=37)
    type(here.new).objects.filter(pk=here.new.pk).update(max_model_len=64)
    here.new.refresh_from_db()
    before = everything()
    found = rollout_check(Asked(route=here.route, candidate=here.new, baseline=here.old))
    assert everything() == before
    assert (found.problems, found.baseline_name) == ({}, "chat-old")
    assert [round(percent, 1) for percent in found.percents] == [1.0, 10.0, 50.0, 100.0]
    assert found.warnings[0].startswith("chat-new takes 64 tokens of context, chat-old ")
    wrong = rollout_check(Asked(route=here.route, candidate=here.old))
    assert set(wrong.problems) == {"baseline", "candidate"}
    assert wrong.percents == ()


def test_a_tenant_is_told_to_demand_two(admin_client: Client) -> None:
    tenant = TenantFactory(name="Acme", slug="acme")
    form = {"name": "Acme", "slug": "acme", "plan": str(tenant.plan_id), "is_active": "on",
            "needs_second_person": "on"}  # fmt: skip
    url = reverse("admin:tenants_tenant_change", args=[tenant.pk])
    assert "Two persons for rollouts" in admin_client.get(url).content.decode()
    admin_client.post(url, form)
    assert Tenant.objects.get().needs_second_person
    event = all_of(AuditEvent).get()
    assert (event.action, event.changes) == (
        "tenant.updated", {"needs_second_person": [False, True]},
    )  # fmt: skip


def test_who_may_not_change_a_tenant_demands_nothing(client: Client) -> None:
    tenant = TenantFactory(name="Acme", slug="acme", needs_second_person=True)
    client.force_login(UserFactory(is_staff=True))
    form = {"name": "Acme", "slug": "acme", "plan": str(tenant.plan_id), "is_active": "on"}
    answer = client.post(reverse("admin:tenants_tenant_change", args=[tenant.pk]), form)
    assert answer.status_code in (302, 403)
    assert Tenant.objects.get().needs_second_person
    assert not all_of(AuditEvent).exists()
