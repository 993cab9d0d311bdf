"""``manage.py deploy``: draining, and what the registry refuses. The rest is in test_placing.py."""

from typing import Any

import pytest
from django.core.management import CommandError, call_command

from apps.audit.models import AuditEvent
from apps.deployments.models import Deployment
from tests.factories import DeploymentFactory, ModelVersionFactory, ReplicaFactory
from tests.rows import all_of

pytestmark = pytest.mark.django_db


def test_the_command_drains_and_waits(capsys: Any) -> None:
    replica = ReplicaFactory(deployment__name="chat")
    with pytest.raises(CommandError, match="after 0 s it is draining"):
        call_command("deploy", "drain", "chat", "--timeout-s", "0")
    assert Deployment.objects.get().desired_state == "draining"
    replica.engine_process.state = "stopped"
    replica.engine_process.save()
    call_command("deploy", "drain", "chat")
    assert capsys.readouterr().out == "chat has stopped.\n"
    assert [event.action for event in all_of(AuditEvent)] == ["deployment.draining"]


def test_the_command_starts_no_retired_version() -> None:
    retired = ModelVersionFactory(stage="retired")
    DeploymentFactory(name="chat", model_version=retired, desired_state="stopped")
    with pytest.raises(CommandError, match="is retired; a deployment needs a version that is"):
        call_command("deploy", "start", "chat")
    assert Deployment.objects.get().desired_state == "stopped"


def test_the_command_lists_who_is_asleep_and_who_waits_for_memory(capsys: Any) -> None:
    for name, stats in (("a", {}), ("b", {"waits_for_memory": True})):
        replica = ReplicaFactory(deployment__name=name, index=0)
        replica.engine_process.state = "ready"
        replica.engine_process.stats = {"is_asleep": True, **stats}
        replica.engine_process.save()
    call_command("deploy", "list")
    lines = sorted(capsys.readouterr().out.splitlines())
    assert [" ".join(line.split())[:32] for line in lines] == [
        "a Asleep 1 of 1 ready, 1 to 1 -",
        "b Waiting for memory 1 of 1 read",
    ]
