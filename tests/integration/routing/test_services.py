"""Routes: every change with its audit event and stamp, and the snapshot that processes keep."""

import pytest
from django.core.exceptions import ValidationError
from pytest_django import DjangoAssertNumQueries

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.selectors import change_stamps
from apps.engines.models import EngineProcess
from apps.routing.models import Route
from apps.routing.selectors import snapshot
from apps.routing.services import route_create, route_delete, route_update
from tests.factories.deployments import DeploymentFactory, EngineProcessFactory, ReplicaFactory
from tests.factories.routing import RouteFactory
from tests.rows import all_of

pytestmark = pytest.mark.django_db


def test_create(actor: Actor) -> None:
    deployment = DeploymentFactory(name="small")
    route = route_create(actor=actor, name="org/chat-1.0:x", deployment=deployment)
    assert route.is_active
    event = all_of(AuditEvent).get()
    assert (event.action, event.object_label) == ("route.created", "org/chat-1.0:x")
    assert event.changes == {"name": "org/chat-1.0:x", "deployment": "small"}
    assert change_stamps()["routes"] == 1


@pytest.mark.parametrize("name", ["", "-chat", "a b", "a\nb", "x" * 121, "é"])
def test_bad_names_change_nothing(actor: Actor, name: str) -> None:
    with pytest.raises(ValidationError) as refused:
        route_create(actor=actor, name=name, deployment=DeploymentFactory())
    assert list(refused.value.message_dict) == ["name"]
    assert not Route.objects.exists()
    assert not all_of(AuditEvent).exists()
    assert "routes" not in change_stamps()


def test_a_name_is_taken_once(actor: Actor) -> None:
    RouteFactory(name="chat")
    with pytest.raises(ValidationError):
        route_create(actor=actor, name="chat", deployment=DeploymentFactory())
    assert Route.objects.count() == 1


def test_update_tells_before_and_after(actor: Actor) -> None:
    route = RouteFactory(name="chat", deployment=DeploymentFactory(name="old"))
    new = DeploymentFactory(name="new")
    updated = route_update(route=route, actor=actor, deployment=new, is_active=False)
    assert (updated.deployment, updated.is_active) == (new, False)
    event = all_of(AuditEvent).get()
    assert event.changes == {"deployment": ["old", "new"], "is_active": [True, False]}
    assert change_stamps()["routes"] == 1


def test_update_without_a_change_is_none(actor: Actor) -> None:
    route_update(route=RouteFactory(), actor=actor, is_active=True)
    assert not all_of(AuditEvent).exists()
    assert "routes" not in change_stamps()


def test_delete(actor: Actor) -> None:
    route = RouteFactory(name="chat")
    route_delete(route=route, actor=actor)
    assert not Route.objects.exists()
    event = all_of(AuditEvent).get()
    assert (event.action, event.object_id) == ("route.deleted", str(route.pk))
    assert change_stamps()["routes"] == 1


def test_snapshot_in_two_queries(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    deployment = DeploymentFactory(name="small", n_replicas=2)
    for index in range(2):
        engine = EngineProcessFactory(ready=True, name=f"small-{index}", epoch=index + 5)
        ReplicaFactory(deployment=deployment, index=index, engine_process=engine)
    RouteFactory(name="chat", deployment=deployment)
    RouteFactory(name="hidden", deployment=deployment, is_active=False)
    RouteFactory(name="empty")
    with django_assert_num_queries(2):
        found = snapshot()
    assert set(found.routes) == {"chat", "empty"}
    target = found.routes["chat"]
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
