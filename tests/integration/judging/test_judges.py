"""Judges: every change with its audit event, its version and its stamp; whose token one may have;
and what stays once it has scored."""

from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.exceptions import PermissionDenied
from apps.core.selectors import change_stamps
from apps.judging.exceptions import JudgeConflict
from apps.judging.models import AnswerSample, Judge
from apps.judging.services import judge_create, judge_delete, judge_update
from apps.rbac.builtin_roles import BUILTIN_ROLES
from apps.rbac.models import ApiToken, User
from apps.routing.models import Route
from apps.routing.services import route_delete
from tests.factories import (
    AnswerSampleFactory,
    ApiTokenFactory,
    DeploymentFactory,
    ExperimentFactory,
    ExperimentMetricFactory,
    JudgeFactory,
    MembershipFactory,
    ModelVersionFactory,
    RouteFactory,
    TenantFactory,
    UserFactory,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db

RUBRIC = "5: answers what was asked.\n1: answers something else."


@pytest.fixture
def route(db: None) -> Route:
    return RouteFactory(name="strict")


def made(actor: Actor, route: Route, **fields: Any) -> Judge:
    return judge_create(actor=actor, **{"name": "kind", "rubric": RUBRIC, "route": route, **fields})


def state() -> tuple[list[Any], list[Any], dict[str, int]]:
    return (
        list(Judge.objects.order_by("pk").values()),
        list(all_of(AuditEvent).order_by("pk").values_list("action", "changes")),
        change_stamps(),
    )


# -- made, changed, gone -----------------------------------------------------------------------


def test_create(actor: Actor, route: Route) -> None:
    token = ApiTokenFactory(name="ci")
    judge = made(actor, route, api_token=token, per_day=50)
    stored = Judge.objects.get()
    assert (stored, stored.version, stored.is_on) == (judge, 1, True)
    assert (stored.lowest, stored.highest, stored.sample_percent) == (1, 5, 100.0)
    event = all_of(AuditEvent).get()
    assert (event.action, event.actor_label, event.object_label) == (
        "judge.created",
        "alice",
        "kind",
    )
    assert event.changes == {
        "name": "kind", "rubric": RUBRIC, "route": "strict", "api_token": str(token), "per_day": 50,
    }  # fmt: skip
    assert change_stamps() == {"judges": 1}


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("name", {"name": "no name"}),
        ("name", {"name": ""}),
        ("name", {"name": "x" * 41}),
        ("name", {"name": "taken"}),
        ("rubric", {"rubric": ""}),
        ("rubric", {"rubric": "x" * 8001}),
        ("rubric", {"rubric": "a\0b"}),
        ("highest", {"lowest": 5, "highest": 5}),
        ("highest", {"highest": 101}),
        ("sample_percent", {"sample_percent": 0.0}),
        ("sample_percent", {"sample_percent": float("nan")}),
        ("per_day", {"per_day": 0}),
    ],
)
def test_what_no_judge_may_be_is_named_and_changes_nothing(
    actor: Actor, route: Route, field: str, fields: dict[str, Any]
) -> None:
    JudgeFactory(name="taken")
    before = state()
    with pytest.raises(ValidationError) as refused:
        made(actor, route, **fields)
    assert list(refused.value.message_dict) == [field]
    assert state() == before


def test_what_makes_embeddings_does_not_judge(actor: Actor) -> None:
    version = ModelVersionFactory(architecture="BertModel")
    embeds = RouteFactory(deployment=DeploymentFactory(model_version=version))
    with pytest.raises(ValidationError) as refused:
        made(actor, embeds)
    assert "generates no text" in refused.value.message_dict["route"][0]
    assert not Judge.objects.exists()


def test_update_says_what_was_and_is(actor: Actor, route: Route) -> None:
    judge = made(actor, route)
    after = judge_update(
        judge=judge, seen=1, actor=actor, rubric="5: short. 1: long.", highest=7, is_on=False
    )
    assert (after.version, after.highest, after.is_on) == (2, 7, False)
    event = all_of(AuditEvent).latest("pk")
    assert (event.action, event.changes) == (
        "judge.updated",
        {"rubric": [RUBRIC, "5: short. 1: long."], "highest": [5, 7], "is_on": [True, False]},
    )
    assert change_stamps() == {"judges": 2}
    before = state()
    assert judge_update(judge=after, seen=2, actor=actor, highest=7).version == 2
    assert state() == before


def test_what_was_counted_meanwhile_is_kept_by_a_change(actor: Actor, route: Route) -> None:
    judge = made(actor, route)
    Judge.objects.update(n_taken=9, n_scored=4)
    judge_update(judge=judge, seen=1, actor=actor, per_day=5)
    assert list(Judge.objects.values_list("n_taken", "n_scored", "per_day")) == [(9, 4, 5)]


def test_of_two_who_change_it_the_second_is_told(actor: Actor, route: Route) -> None:
    judge = made(actor, route)
    judge_update(judge=judge, seen=1, actor=actor, per_day=5)
    before = state()
    for change in (
        lambda: judge_update(judge=judge, seen=1, actor=actor, per_day=6),
        lambda: judge_delete(judge=judge, seen=1, actor=actor),
    ):
        with pytest.raises(JudgeConflict) as refused:
            change()
        assert (refused.value.status, refused.value.code) == (409, "judge_conflict")
    assert state() == before
    judge_delete(judge=judge, seen=2, actor=actor)
    with pytest.raises(JudgeConflict, match="deleted by someone else"):
        judge_update(judge=judge, seen=2, actor=actor, per_day=6)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("rubric", {"rubric": "Something else."}),
        ("highest", {"highest": 9}),
        ("lowest", {"lowest": 0}),
        ("name", {"name": "kinder"}),
        ("sample_percent", {"sample_percent": 5.0}),
        ("route", {"route": None}),
    ],
)
def test_what_scores_are_made_by_stays_once_an_answer_was_taken(
    actor: Actor, route: Route, field: str, fields: dict[str, Any]
) -> None:
    judge = made(actor, route)
    Judge.objects.update(n_taken=1)
    if "route" in fields:
        fields = {"route": RouteFactory()}
    before = state()
    with pytest.raises(JudgeConflict, match=f"^kind has begun to score; its {field} stays") as no:
        judge_update(judge=judge, seen=1, actor=actor, **fields)
    assert no.value.param == field
    assert state() == before
    after = judge_update(
        judge=judge, seen=1, actor=actor, is_on=False, per_day=3, api_token=ApiTokenFactory()
    )
    assert after.version == 2


def test_delete_takes_what_waits_for_it_along(actor: Actor, route: Route) -> None:
    judge, other = made(actor, route), JudgeFactory()
    AnswerSampleFactory(judge=judge)
    kept = AnswerSampleFactory(judge=other)
    judge_delete(judge=judge, seen=1, actor=actor)
    assert list(Judge.objects.all()) == [other]
    assert list(all_of(AnswerSample)) == [kept]
    assert all_of(AuditEvent).latest("pk").action == "judge.deleted"
    assert change_stamps() == {"judges": 2}


@pytest.mark.parametrize("kind", [{}, {"running": True}])
def test_what_an_experiment_counts_is_not_taken_from_it(
    actor: Actor, route: Route, kind: dict[str, Any]
) -> None:
    judge = made(actor, route)
    experiment = ExperimentFactory(name="cooler", **kind)
    ExperimentMetricFactory(experiment=experiment, metric="judge:kind")
    ExperimentMetricFactory(experiment=experiment, metric="judge:kind", role="guardrail")
    before = state()
    for change in (
        lambda: judge_delete(judge=judge, seen=1, actor=actor),
        lambda: judge_update(judge=judge, seen=1, actor=actor, name="kinder"),
    ):
        with pytest.raises(JudgeConflict, match=r"^kind is what experiment cooler counts"):
            change()
    assert state() == before
    judge_update(judge=judge, seen=1, actor=actor, is_on=False)
    experiment.delete()
    ExperimentMetricFactory(experiment=ExperimentFactory(stopped=True), metric="judge:kind")
    judge_delete(judge=judge, seen=2, actor=actor)


def test_a_route_that_judges_stays(actor: Actor, route: Route) -> None:
    made(actor, route)
    with pytest.raises(ValidationError, match="still used by: kind"):
        route_delete(route=route, actor=actor)
    assert Route.objects.exists()


@pytest.mark.parametrize("verb", ["create", "update", "delete"])
def test_a_failure_between_the_change_and_its_event_leaves_neither(
    actor: Actor, route: Route, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    judge = made(actor, route)
    AnswerSampleFactory(judge=judge)
    before = state()

    def fail(**_: Any) -> None:
        raise RuntimeError("no audit")

    monkeypatch.setattr("apps.judging.services.event_record", fail)
    changes: dict[str, Any] = {
        "create": lambda: made(actor, route, name="another"),
        "update": lambda: judge_update(judge=judge, seen=1, actor=actor, per_day=2),
        "delete": lambda: judge_delete(judge=judge, seen=1, actor=actor),
    }
    with pytest.raises(RuntimeError):
        changes[verb]()
    assert state() == before
    assert all_of(AnswerSample).count() == 1


# -- in whose name -----------------------------------------------------------------------------


def member(tenant: Any, role: str) -> User:
    user: User = MembershipFactory(tenant=tenant, role=role).user
    return user


def test_a_token_is_lent_by_who_could_issue_it(actor: Actor, route: Route) -> None:
    tenant = TenantFactory()
    mine = member(tenant, "developer")
    token = ApiTokenFactory(tenant=tenant, owner=mine)
    judge = made(actor, route, api_token=token, by=mine)
    assert judge.api_token == token
    root = UserFactory(admin=True)
    tenants_own = ApiTokenFactory(tenant=tenant)
    after = judge_update(judge=judge, seen=1, actor=actor, by=root, api_token=tenants_own)
    assert after.api_token == tenants_own


@pytest.mark.parametrize("whose", ["another tenant's", "the tenant's own", "a colleague's", "seen"])
def test_nobody_lends_what_they_could_not_issue(actor: Actor, route: Route, whose: str) -> None:
    tenant = TenantFactory()
    role = "viewer" if whose == "seen" else "developer"
    person = member(tenant, role)
    tokens: dict[str, Any] = {
        "another tenant's": lambda: ApiTokenFactory(),
        "the tenant's own": lambda: ApiTokenFactory(tenant=tenant),
        "a colleague's": lambda: ApiTokenFactory(tenant=tenant, owner=member(tenant, "owner")),
        "seen": lambda: ApiTokenFactory(tenant=tenant, owner=person),
    }
    token, judge = tokens[whose](), made(actor, route)
    before = state()
    with pytest.raises(PermissionDenied):
        made(actor, route, name="another", api_token=token, by=person)
    with pytest.raises(PermissionDenied):
        judge_update(judge=judge, seen=1, actor=actor, by=person, api_token=token)
    assert state() == before


def test_what_is_lent_stays_while_others_change_the_rest(actor: Actor, route: Route) -> None:
    judge = made(actor, route, api_token=ApiTokenFactory())
    person = member(TenantFactory(), "viewer")
    after = judge_update(
        judge=judge, seen=1, actor=actor, by=person, api_token=judge.api_token, per_day=2
    )
    assert (after.per_day, after.api_token) == (2, judge.api_token)
    assert judge_update(judge=after, seen=2, actor=actor, by=person, api_token=None).version == 3


@pytest.mark.parametrize("why", ["revoked", "expired", "scope", "tenant", "owner"])
def test_a_token_that_could_ask_nothing_is_refused(actor: Actor, route: Route, why: str) -> None:
    past = timezone.now() - timedelta(hours=1)
    tenant = TenantFactory()
    fields: dict[str, dict[str, Any]] = {
        "revoked": {"revoked_at": past},
        "expired": {"expires_at": past},
        "scope": {"scopes": ["batches"]},
        "tenant": {"tenant__is_active": False},
        "owner": {"tenant": tenant, "owner": member(tenant, "auditor")},
    }
    token: ApiToken = ApiTokenFactory(**fields[why])
    judge = made(actor, route)
    before = state()
    for change in (
        lambda: made(actor, route, name="another", api_token=token),
        lambda: judge_update(judge=judge, seen=1, actor=actor, api_token=token),
    ):
        with pytest.raises(ValidationError) as refused:
            change()
        assert list(refused.value.message_dict) == ["api_token"]
    assert state() == before


def test_roles_that_may() -> None:
    everything = ["view", "add", "change", "delete"]
    gives = {
        role.slug: [
            verb
            for verb in ("view", "add", "change", "delete")
            if role.gives(f"judging.{verb}_judge")
        ]
        for role in BUILTIN_ROLES
    }
    assert gives == {
        "owner": everything, "admin": everything, "operator": everything, "developer": [],
        "auditor": ["view"], "viewer": ["view"],
    }  # fmt: skip
