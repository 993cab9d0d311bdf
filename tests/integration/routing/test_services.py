"""Routes: every change with its audit event and stamp, and the snapshot that processes keep."""

import pytest
from django.core.exceptions import ValidationError
from pytest_django import DjangoAssertNumQueries

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.selectors import change_stamps
from apps.deployments.models import Deployment
from apps.engines.models import EngineProcess
from apps.routing.models import Route, RouteAlias, RouteTarget
from apps.routing.selectors import snapshot, targets_of
from apps.routing.services import route_create, route_delete, route_update
from apps.routing.types import TargetSpec, all_to
from tests.factories import (
    DeploymentFactory,
    EngineProcessFactory,
    ModelVersionFactory,
    ReplicaFactory,
    RouteFactory,
    RouteTargetFactory,
    TenantFactory,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db


def test_create(actor: Actor) -> None:
    deployment = DeploymentFactory(name="small")
    route = route_create(actor=actor, name="org/chat-1.0:x", targets=all_to(deployment))
    assert route.is_active
    event = all_of(AuditEvent).get()
    assert (event.action, event.object_label) == ("route.created", "org/chat-1.0:x")
    assert event.changes == {"name": "org/chat-1.0:x", "targets": ["small=100"]}
    assert change_stamps()["routes"] == 1


@pytest.mark.parametrize("name", ["", "-chat", "a b", "a\nb", "x" * 121, "é"])
def test_bad_names_change_nothing(actor: Actor, name: str) -> None:
    with pytest.raises(ValidationError) as refused:
        route_create(actor=actor, name=name, targets=all_to(DeploymentFactory()))
    assert list(refused.value.message_dict) == ["name"]
    assert not Route.objects.exists()
    assert not all_of(AuditEvent).exists()
    assert "routes" not in change_stamps()


def test_a_name_is_taken_once(actor: Actor) -> None:
    RouteFactory(name="chat")
    with pytest.raises(ValidationError):
        route_create(actor=actor, name="chat", targets=all_to(DeploymentFactory()))
    assert Route.objects.count() == 1


def test_update_tells_before_and_after(actor: Actor) -> None:
    route = RouteFactory(name="chat", deployment=DeploymentFactory(name="old"))
    new = DeploymentFactory(name="new")
    updated = route_update(route=route, actor=actor, targets=all_to(new), is_active=False)
    assert (updated.targets.get().deployment, updated.is_active) == (new, False)
    event = all_of(AuditEvent).get()
    assert event.changes == {"targets": [["old=100"], ["new=100"]], "is_active": [True, False]}
    assert change_stamps()["routes"] == 1


def test_update_without_a_change_is_none(actor: Actor) -> None:
    route = RouteFactory()
    route_update(
        route=route, actor=actor, is_active=True, targets=all_to(route.deployment), aliases=()
    )
    assert not all_of(AuditEvent).exists()
    assert "routes" not in change_stamps()


def test_delete(actor: Actor) -> None:
    route = RouteFactory(name="chat")
    route_delete(route=route, actor=actor)
    assert not Route.objects.exists()
    event = all_of(AuditEvent).get()
    assert (event.action, event.object_id) == ("route.deleted", str(route.pk))
    assert change_stamps()["routes"] == 1


def test_snapshot_in_four_queries(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    deployment = DeploymentFactory(name="small", n_replicas=2)
    for index in range(2):
        engine = EngineProcessFactory(ready=True, name=f"small-{index}", epoch=index + 5)
        ReplicaFactory(deployment=deployment, index=index, engine_process=engine)
    RouteFactory(name="chat", deployment=deployment)
    RouteFactory(name="hidden", deployment=deployment, is_active=False)
    RouteFactory(name="empty")
    with django_assert_num_queries(4):
        found = snapshot()
    assert set(found.routes) == {"chat", "empty"}
    (target,) = found.routes["chat"].destinations
    assert (target.deployment_name, target.model_version_id) == (
        "small",
        deployment.model_version_id,
    )
    endpoints = found.endpoints[deployment.pk]
    assert [(each.engine_name, each.epoch) for each in endpoints] == [
        ("small-0", 5),
        ("small-1", 6),
    ]
    assert list(found.endpoints) == [deployment.pk]


def test_snapshot_leaves_out_engines_that_are_not_ready() -> None:
    replica = ReplicaFactory(index=0)
    RouteFactory(name="chat", deployment=replica.deployment)
    EngineProcess.objects.update(state="unresponsive")
    assert snapshot().endpoints == {}


# -- several deployments, further names, defaults ------------------------------------------------


def embedding() -> Deployment:
    made: Deployment = DeploymentFactory(
        name="embeds", model_version=ModelVersionFactory(architecture="BertModel")
    )
    return made


def test_a_route_with_all_that_it_may_have(actor: Actor) -> None:
    one, two, three = (DeploymentFactory(name=name) for name in ("one", "two", "three"))
    route = route_create(
        actor=actor,
        name="chat",
        targets=[
            TargetSpec(deployment=one, weight=70),
            TargetSpec(deployment=two, weight=30),
            TargetSpec(deployment=three, fallback_order=1),
        ],
        aliases=["chat-latest", "gpt"],
        defaults={"temperature": 0.2, "max_tokens": 64},
    )
    assert all_of(AuditEvent).get().changes == {
        "name": "chat",
        "defaults": "max_tokens=64 temperature=0.2",
        "targets": ["one=70", "three as fallback 1", "two=30"],
        "aliases": ["chat-latest", "gpt"],
    }
    found = snapshot()
    model = found.routes["chat"]
    assert [(each.deployment_name, each.weight) for each in model.destinations] == [
        ("one", 70),
        ("two", 30),
    ]
    assert [each.deployment_name for each in model.fallbacks] == ["three"]
    assert dict(found.aliases) == {"chat-latest": "chat", "gpt": "chat"}
    assert dict(model.defaults) == {"temperature": 0.2, "max_tokens": 64}
    route_update(
        route=route,
        actor=actor,
        targets=[
            TargetSpec(deployment=three, weight=1),
            TargetSpec(deployment=two, weight=0),
            TargetSpec(deployment=one, fallback_order=1),
        ],
        aliases=["gpt"],
        defaults={},
    )
    event = all_of(AuditEvent).order_by("id").last()
    assert event is not None
    assert event.changes == {
        "defaults": ["max_tokens=64 temperature=0.2", ""],
        "targets": [
            ["one=70", "three as fallback 1", "two=30"],
            ["one as fallback 1", "three=1", "two=0"],
        ],
        "aliases": [["chat-latest", "gpt"], ["gpt"]],
    }
    model = snapshot().routes["chat"]
    assert [each.deployment_name for each in model.everywhere] == ["three", "one"]
    assert change_stamps()["routes"] == 2


def wrong_targets() -> dict[str, tuple[list[TargetSpec], str]]:
    one, two = DeploymentFactory(name="one"), DeploymentFactory(name="two")
    return {
        "none": ([], "At least one deployment needs a weight above 0."),
        "no weight": ([TargetSpec(deployment=one)], "At least one deployment needs a weight above"),
        "only a fallback": ([TargetSpec(deployment=one, fallback_order=1)], "At least one"),
        "twice": (
            [*all_to(one), TargetSpec(deployment=one, fallback_order=1)],
            "one is there twic",
        ),
        "both": (
            [TargetSpec(deployment=one, weight=1, fallback_order=1)],
            "one: Give either a wei",
        ),
        "same place": (
            [
                *all_to(one),
                TargetSpec(deployment=two, fallback_order=1),
                TargetSpec(deployment=DeploymentFactory(), fallback_order=1),
            ],
            "Two fallbacks have the same place.",
        ),
        "too heavy": ([TargetSpec(deployment=one, weight=1001)], "one: Ensure this value is less"),
        "place zero": (
            [*all_to(one), TargetSpec(deployment=two, fallback_order=0)],
            "two: Ensure this value is greater than or equal to 1.",
        ),
        "another task": (
            [*all_to(one), TargetSpec(deployment=embedding(), weight=1)],
            "Some generate text and some make embeddings (embeds); give one kind.",
        ),
    }


@pytest.mark.parametrize(
    "case",
    [
        "none", "no weight", "only a fallback", "twice", "both", "same place", "too heavy",
        "place zero", "another task",
    ],
)  # fmt: skip
def test_wrong_targets_change_nothing(actor: Actor, case: str) -> None:
    route = RouteFactory(deployment=DeploymentFactory(name="kept"))
    targets, said = wrong_targets()[case]
    with pytest.raises(ValidationError) as refused:
        route_update(route=route, actor=actor, targets=targets)
    ((text,),) = refused.value.message_dict.values()
    assert list(refused.value.message_dict) == ["targets"]
    assert text.startswith(said)
    assert RouteTarget.objects.get().deployment.name == "kept"
    assert not all_of(AuditEvent).exists()
    assert "routes" not in change_stamps()


@pytest.mark.parametrize(
    ("name", "aliases", "field"),
    [
        ("new", ["taken"], "aliases"),
        ("new", ["other"], "aliases"),
        ("new", ["new"], "aliases"),
        ("new", ["a b"], "aliases"),
        ("taken", [], "name"),
    ],
)
def test_a_name_means_one_route(actor: Actor, name: str, aliases: list[str], field: str) -> None:
    other = RouteFactory(name="other")
    RouteAlias.objects.create(route=other, name="taken")
    with pytest.raises(ValidationError) as refused:
        route_create(actor=actor, name=name, targets=all_to(DeploymentFactory()), aliases=aliases)
    assert list(refused.value.message_dict) == [field]
    assert (Route.objects.count(), RouteAlias.objects.count()) == (1, 1)
    assert not all_of(AuditEvent).exists()


def test_wrong_defaults_change_nothing(actor: Actor) -> None:
    route = RouteFactory(defaults={"top_p": 0.5})
    with pytest.raises(ValidationError) as refused:
        route_update(
            route=route, actor=actor, defaults={"temperature": 3, "speed": 1, "max_tokens": 0.5}
        )
    assert refused.value.message_dict == {
        "defaults": [
            "temperature must be a number from 0 to 2, not 3.",
            "'speed' is none of temperature, top_p, top_k, min_p, presence_penalty, "
            "frequency_penalty, repetition_penalty, max_tokens.",
            "max_tokens must be a whole number from 1 to 2,147,483,647, not 0.5.",
        ]
    }
    route.refresh_from_db()
    assert route.defaults == {"top_p": 0.5}
    assert not all_of(AuditEvent).exists()


def test_a_deployment_that_came_to_do_something_else_gets_nothing() -> None:
    route = RouteFactory(name="chat", deployment=DeploymentFactory(name="talks"))
    other = DeploymentFactory(name="changes")
    RouteTargetFactory(route=route, deployment=other, weight=50)
    other.model_version = ModelVersionFactory(architecture="BertModel")
    other.save()
    model = snapshot().routes["chat"]
    assert (model.task, [each.deployment_name for each in model.everywhere]) == (
        "generate",
        ["talks"],
    )


@pytest.mark.parametrize("way", [{"weight": 1}, {"fallback_order": 1}])
def test_a_newcomer_comes_by_a_rollout_where_two_persons_are_wanted(
    actor: Actor, way: dict[str, int]
) -> None:
    old, spare, new = (DeploymentFactory(name=name) for name in ("old", "spare", "new"))
    route = RouteFactory(name="chat", deployment=old)
    route_update(route=route, actor=actor, targets=[*all_to(old), TargetSpec(deployment=spare)])
    TenantFactory(needs_second_person=True)
    before, stamps, n_events = targets_of(route), change_stamps(), all_of(AuditEvent).count()
    for newcomer in (new, spare):  # one that is named and asked for nothing is new as well
        with pytest.raises(ValidationError, match="begin a rollout") as refused:
            asked = [*all_to(old), TargetSpec(deployment=newcomer, **way)]
            route_update(route=route, actor=actor, targets=asked, description="Busy")
        assert list(refused.value.message_dict) == ["targets"]
    assert (targets_of(route), change_stamps()) == (before, stamps)
    assert all_of(AuditEvent).count() == n_events
    assert Route.objects.get().description == ""


def test_shares_of_those_that_are_there_need_no_second_person(actor: Actor) -> None:
    old, new = DeploymentFactory(name="old"), DeploymentFactory(name="new")
    route = RouteFactory(name="chat", deployment=old)
    both = [TargetSpec(deployment=old, weight=90), TargetSpec(deployment=new, weight=10)]
    route_update(route=route, actor=actor, targets=both)
    TenantFactory(needs_second_person=True)
    route_update(route=route, actor=actor, targets=all_to(new))
    assert [each.deployment for each in targets_of(route)] == [new]


def test_whose_tenants_want_one_person_gets_a_newcomer_at_once(actor: Actor) -> None:
    TenantFactory(needs_second_person=True)
    new = DeploymentFactory(name="new")
    route = RouteFactory(name="chat", deployment=DeploymentFactory(name="old"), is_restricted=True)
    route.tenants.set([TenantFactory()])
    route_update(route=route, actor=actor, targets=all_to(new))
    assert [each.deployment for each in targets_of(route)] == [new]
