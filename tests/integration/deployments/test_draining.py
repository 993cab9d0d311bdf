"""Draining: what engines have is finished, however long it takes; then they are stopped."""

from datetime import timedelta
from typing import Any

import pytest
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.audit.types import SYSTEM, Actor
from apps.core.selectors import change_stamps
from apps.deployments.models import Deployment, Replica
from apps.deployments.selectors import deployments_all, live_state, replica_endpoints
from apps.deployments.services import (
    deployment_drain,
    deployment_start,
    deployment_stop,
    replicas_reconcile,
)
from apps.deployments.types import Reconciled
from apps.engines.models import EngineProcess
from tests.factories import DeploymentFactory, ReplicaFactory
from tests.integration.console.pages import staff
from tests.rows import all_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def replicas(actor: Actor) -> list[Replica]:
    """Two that are ready, of a deployment that was told to drain."""
    deployment = DeploymentFactory(name="chat", n_replicas=2, max_replicas=2)
    rows = [
        ReplicaFactory(deployment=deployment, index=index, engine_process__ready=True)
        for index in range(2)
    ]
    assert len(replica_endpoints()) == 2
    deployment_drain(deployment=deployment, actor=actor)
    return rows


def reconcile(*replicas: Replica, **idle_after_s: float) -> Reconciled:
    """With the processes of these; ``_0=3``: the first had nothing to do 3 s after it was told."""
    told_at = Deployment.objects.get().updated_at
    return replicas_reconcile(
        occupied={each.engine_process_id for each in replicas},
        idle_at={
            replicas[int(name[1:])].engine_process_id: told_at + timedelta(seconds=seconds)
            for name, seconds in idle_after_s.items()
        },
    )


def running(found: Reconciled) -> list[int]:
    return [spec.process_id for spec in found.specs]


def state() -> str:
    return str(Deployment.objects.get().desired_state)


def test_it_gets_nothing_and_ends_once_it_has_nothing(replicas: list[Replica]) -> None:
    first, second = replicas
    assert replica_endpoints() == []
    assert change_stamps()["deployments"] == 1
    assert live_state(deployments_all()[0]).word == "Draining"
    both = [first.engine_process_id, second.engine_process_id]
    for idle_after_s in ({}, {"_0": 1.0}):  # at 1 s a gateway may not have heard of it yet
        assert running(reconcile(first, second, **idle_after_s)) == both
    found = reconcile(first, second, _0=2.5)
    assert (running(found), found.leaving) == (both[1:], {both[1]})
    assert found.scalable == ()
    assert running(reconcile(second)) == both[1:]
    assert state() == "draining"

    assert running(reconcile()) == []
    assert state() == "stopped"
    EngineProcess.objects.update(state="stopped")
    assert live_state(deployments_all()[0]).word == "Stopped"
    assert [(e.action, e.actor_kind) for e in all_of(AuditEvent).order_by("id")] == [
        ("deployment.draining", "user"),
        ("deployment.stopped", SYSTEM.kind),
    ]


def test_a_stop_ends_it_and_a_start_takes_it_back(replicas: list[Replica], actor: Actor) -> None:
    deployment_start(deployment=replicas[0].deployment, actor=actor)
    assert len(replica_endpoints()) == 2
    assert len(running(reconcile(*replicas))) == 2
    deployment_drain(deployment=replicas[0].deployment, actor=actor)
    deployment_stop(deployment=replicas[0].deployment, actor=actor)
    assert running(reconcile(*replicas)) == []
    assert state() == "stopped"


def test_what_does_not_run_is_not_drained(actor: Actor) -> None:
    deployment = DeploymentFactory(desired_state="stopped")
    deployment_drain(deployment=deployment, actor=actor)
    assert state() == "stopped"
    assert not all_of(AuditEvent).exists()


@pytest.mark.parametrize("may", [True, False])
def test_who_may_change_it_drains_it(may: bool) -> None:
    deployment = DeploymentFactory(name="chat")
    client = staff("view_deployment", *(["change_deployment"] if may else []))
    url = reverse("admin:deployments_deployment_changelist")
    post: dict[str, Any] = {"action": "drain_selected", "_selected_action": [deployment.pk]}
    client.post(url, post)
    assert state() == ("draining" if may else "running")
    assert all_of(AuditEvent).filter(action="deployment.draining").exists() is may
