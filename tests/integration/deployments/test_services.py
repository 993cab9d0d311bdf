"""Deployments: each write with its audit event and stamp, and what the agent is told to run."""

from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.exceptions import Conflict
from apps.core.selectors import change_stamps
from apps.deployments.models import Deployment, Replica
from apps.deployments.selectors import deployments_all, live_state, replica_endpoints
from apps.deployments.services import (
    deployment_create,
    deployment_delete,
    deployment_restart,
    deployment_start,
    deployment_stop,
    deployment_update,
    replicas_reconcile,
)
from apps.engines.models import EngineProcess
from apps.engines.types import EngineSpec
from tests.factories import (
    DeploymentFactory,
    EngineProcessFactory,
    ModelVersionFactory,
    ReplicaFactory,
    RouteFactory,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db

State = EngineProcess.State


def events() -> list[tuple[str, Any]]:
    return list(all_of(AuditEvent).order_by("id").values_list("action", "changes"))


def specs(**options: Any) -> list[EngineSpec]:
    return list(replicas_reconcile(**options).specs)


def stamp() -> int:
    return change_stamps().get("deployments", 0)


def test_create_writes_row_event_and_stamp(actor: Actor) -> None:
    version = ModelVersionFactory()
    deployment = deployment_create(
        actor=actor, name="chat", model_version=version, min_replicas=2, max_replicas=3
    )
    stored = Deployment.objects.get()
    assert (stored.name, stored.n_replicas, stored.generation) == ("chat", 2, 1)
    assert stored.desired_state == "running"
    assert events() == [
        (
            "deployment.created",
            {"name": "chat", "model_version": str(version), "min_replicas": 2, "max_replicas": 3},
        )
    ]
    assert all_of(AuditEvent).get().object_id == str(deployment.pk)
    assert stamp() == 1


def test_a_create_that_is_refused_changes_nothing(actor: Actor) -> None:
    with pytest.raises(ValidationError) as refusal:
        deployment_create(
            actor=actor, name="chat", model_version=ModelVersionFactory(), min_replicas=0
        )
    assert set(refusal.value.message_dict) == {"min_replicas"}
    assert not Deployment.objects.exists()
    assert events() == []
    assert stamp() == 0


def test_the_database_itself_refuses_no_replicas() -> None:
    with pytest.raises(IntegrityError):
        DeploymentFactory(n_replicas=0)


def test_update_says_what_changed_and_replaces_engines_only_where_it_must(actor: Actor) -> None:
    deployment = DeploymentFactory()
    deployment_update(deployment=deployment, actor=actor, min_replicas=2, max_replicas=3)
    assert Deployment.objects.get().generation == 1
    assert Deployment.objects.get().n_replicas == 2
    deployment_update(deployment=deployment, actor=actor, max_replicas=3, dtype="float32")
    assert Deployment.objects.get().generation == 2
    assert events() == [
        ("deployment.updated", {"min_replicas": [1, 2], "max_replicas": [1, 3]}),
        ("deployment.updated", {"dtype": ["auto", "float32"]}),
    ]
    assert stamp() == 2


def test_an_update_to_the_same_values_is_none(actor: Actor) -> None:
    deployment = DeploymentFactory()
    deployment_update(deployment=deployment, actor=actor, dtype="auto", max_replicas=1)
    assert events() == []
    assert stamp() == 0


def test_a_name_stays(actor: Actor) -> None:
    deployment = DeploymentFactory(name="chat")
    with pytest.raises(ValidationError):
        deployment_update(deployment=deployment, actor=actor, name="talk")
    assert Deployment.objects.get().name == "chat"
    assert stamp() == 0


def test_start_stop_and_restart(actor: Actor) -> None:
    deployment = DeploymentFactory()
    deployment_start(deployment=deployment, actor=actor)
    assert (events(), stamp()) == ([], 0), "it runs already"
    deployment_stop(deployment=deployment, actor=actor)
    assert Deployment.objects.get().desired_state == "stopped"
    deployment_restart(deployment=deployment, actor=actor)
    stored = Deployment.objects.get()
    assert (stored.desired_state, stored.generation) == ("running", 2)
    assert [action for action, _ in events()] == ["deployment.stopped", "deployment.restarted"]
    assert stamp() == 2


def test_delete(actor: Actor) -> None:
    deployment = DeploymentFactory(name="chat")
    ReplicaFactory(deployment=deployment, index=0)
    deployment_delete(deployment=deployment, actor=actor)
    assert not Deployment.objects.exists()
    assert not Replica.objects.exists()
    assert EngineProcess.objects.count() == 1, "its process lives until the agent has ended it"
    assert [action for action, _ in events()] == ["deployment.deleted"]
    assert stamp() == 1


def test_a_deployment_that_a_route_leads_to_is_not_deleted(actor: Actor) -> None:
    route = RouteFactory(name="public")
    with pytest.raises(Conflict, match="public"):
        deployment_delete(deployment=route.deployment, actor=actor)
    assert Deployment.objects.count() == 1
    assert events() == []
    assert stamp() == 0


# -- what should run -----------------------------------------------------------------------------


def test_reconcile_makes_rows_once_and_tells_the_command_line(settings: Any) -> None:
    settings.MODELS_DIR = Path("/models")
    version = ModelVersionFactory(path="tiny/1")
    DeploymentFactory(
        name="chat", model_version=version, n_replicas=2, kv_cache_tokens=512, max_model_len=128
    )
    first, second = specs()
    assert specs() == [first, second]
    assert [first.name, second.name] == ["chat-0", "chat-1"]
    assert first.revision == 1
    assert " ".join(first.arguments) == (
        "--model /models/tiny/1 --dtype auto --kv-cache-tokens 512 --max-sequences 64 "
        "--max-batched-tokens 512 --max-model-len 128"
    )
    assert EngineProcess.objects.count() == Replica.objects.count() == 2


def test_the_models_own_length_is_the_default() -> None:
    DeploymentFactory(max_model_len=None)
    (spec,) = specs()
    assert "--max-model-len" not in spec.arguments


def test_a_stopped_deployment_keeps_its_rows_and_runs_nothing(actor: Actor) -> None:
    deployment = DeploymentFactory()
    specs()
    deployment_stop(deployment=deployment, actor=actor)
    assert specs() == []
    assert Replica.objects.count() == 1


def test_surplus_rows_go_once_their_process_is_gone(actor: Actor) -> None:
    deployment = DeploymentFactory(name="chat", n_replicas=2)
    _, second = specs()
    deployment_update(deployment=deployment, actor=actor, min_replicas=1, max_replicas=1)
    assert [spec.name for spec in specs(occupied={second.process_id})] == ["chat-0"]
    assert EngineProcess.objects.count() == 2
    specs()
    assert list(EngineProcess.objects.values_list("name", flat=True)) == ["chat-0"]
    assert Replica.objects.count() == 1


def test_a_namesake_waits_until_the_old_process_is_gone(actor: Actor) -> None:
    old = DeploymentFactory(name="chat")
    (spec,) = specs()
    version = old.model_version
    deployment_delete(deployment=old, actor=actor)
    DeploymentFactory(name="chat", model_version=version)
    assert specs(occupied={spec.process_id}) == []
    (new,) = specs()
    assert new.name == "chat-0"
    assert new.process_id != spec.process_id


# -- what runs -----------------------------------------------------------------------------------


def test_endpoints_are_the_ready_replicas_of_running_deployments(
    django_assert_num_queries: Any,
) -> None:
    running = DeploymentFactory(n_replicas=2)
    ready = ReplicaFactory(deployment=running, index=1)
    ReplicaFactory(
        deployment=running, index=0, engine_process=EngineProcessFactory(state=State.STARTING)
    )
    ReplicaFactory(deployment=running, index=2)  # beyond n_replicas: on its way out
    ReplicaFactory(deployment=DeploymentFactory(desired_state="stopped"), index=0)
    with django_assert_num_queries(1):
        (endpoint,) = replica_endpoints()
    assert (endpoint.deployment_id, endpoint.replica_index) == (running.pk, 1)
    assert endpoint.deployment_name == running.name
    assert endpoint.model_version_id == running.model_version_id
    assert endpoint.engine_name == ready.engine_process.name
    assert endpoint.socket_path == ready.engine_process.socket_path
    assert endpoint.epoch == 1


@pytest.mark.parametrize(
    ("desired", "states", "word", "n_ready"),
    [
        ("running", [], "Starting", 0),
        ("running", [State.STARTING, State.STARTING], "Starting", 0),
        ("running", [State.READY, State.READY], "Ready", 2),
        ("running", [State.WAITING, State.STARTING], "Waiting for memory", 0),
        ("running", [State.WAITING, State.BACKING_OFF], "Failing", 0),
        ("running", [State.READY, State.BACKING_OFF], "Degraded", 1),
        ("running", [State.STARTING, State.BACKING_OFF], "Failing", 0),
        ("running", [State.BACKING_OFF, State.FAILED], "Failed", 0),
        ("running", [State.BACKING_OFF, State.CRASH_LOOP], "Crash loop", 0),
        ("running", [State.READY, State.CRASH_LOOP], "Degraded", 1),
        ("stopped", [State.DRAINING, State.STOPPED], "Stopping", 0),
        ("stopped", [State.STOPPED, State.STOPPED], "Stopped", 0),
    ],
)
def test_live_state(
    desired: str, states: list[str], word: str, n_ready: int, django_assert_num_queries: Any
) -> None:
    deployment = DeploymentFactory(desired_state=desired, n_replicas=2)
    for index, state in enumerate(states):
        process = EngineProcessFactory(state=state, last_error=f"of {index}", n_restarts=index)
        ReplicaFactory(deployment=deployment, index=index, engine_process=process)
    with django_assert_num_queries(3 if states else 2):
        (found,) = deployments_all()
        state_now = live_state(found)
    assert (state_now.word, state_now.n_ready, state_now.n_replicas) == (word, n_ready, 2)
    is_failing = word in ("Degraded", "Failing", "Failed", "Crash loop")
    assert state_now.last_error == ("of 1" if is_failing else "")
