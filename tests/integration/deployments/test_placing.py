"""Placement with rows: who gets a device, who is refused and where that is said, what is scaled."""

from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import SYSTEM, Actor
from apps.console.doctor.processes import look_at_engines
from apps.core.selectors import change_stamps
from apps.deployments.models import Deployment, Replica
from apps.deployments.selectors import deployments_all, live_state
from apps.deployments.services import (
    deployment_create,
    deployment_restart,
    deployment_scale,
    deployment_start,
    deployment_update,
)
from apps.engines.models import Device, EngineProcess, Node
from apps.engines.services import node_record
from apps.engines.types import DeviceReport, NodeReport
from tests.factories import (
    DeploymentFactory,
    DeviceFactory,
    EngineProcessFactory,
    ModelVersionFactory,
    ReplicaFactory,
)
from tests.integration.console.pages import messages, staff
from tests.integration.deployments.placing import MIB, RUNTIME, reconcile, version
from tests.migrating import migrated_back
from tests.rows import all_of

pytestmark = pytest.mark.django_db


def test_a_replica_gets_a_device_its_memory_and_no_gpu(device: Device) -> None:
    DeploymentFactory(name="chat", model_version=version(100))
    (spec,) = reconcile(device).specs
    assert spec.environment == (("CUDA_VISIBLE_DEVICES", ""),)
    assert "--threads" not in spec.arguments
    replica = Replica.objects.get()
    assert list(replica.devices.all()) == [device]
    assert (replica.placed_generation, replica.refusal) == (1, "")
    assert replica.estimated_bytes == 100 * MIB + RUNTIME


def test_replicas_that_may_become_more_share_the_cores(device: Device) -> None:
    DeploymentFactory(model_version=version(10), max_replicas=3)
    (spec,) = reconcile(device).specs
    assert spec.arguments[-2:] == ("--threads", "2")


def test_a_running_engine_goes_on_with_its_threads_when_bounds_change(device: Device) -> None:
    deployment = DeploymentFactory(model_version=version(10))
    (spec,) = reconcile(device).specs
    deployment_update(deployment=deployment, actor=SYSTEM, max_replicas=4)
    assert reconcile(device, occupied={spec.process_id}).specs == (spec,)
    (anew,) = reconcile(device).specs
    assert anew.arguments[-2:] == ("--threads", "2")


def test_what_does_not_fit_does_not_run_and_says_how_much_is_missing(device: Device) -> None:
    DeploymentFactory(name="small", model_version=version(100))
    DeploymentFactory(name="large", model_version=version(700))
    DeploymentFactory(name="late", model_version=version(90))
    found = reconcile(device)
    # The largest goes first, and fits no more than that: 1,020 MiB of 1,000.
    assert [spec.name for spec in found.specs] == ["late-0", "small-0"]
    assert found.is_short
    refused = Replica.objects.get(deployment__name="large")
    assert not refused.devices.exists()
    assert refused.refusal == (
        "A replica of large needs 1020.0\xa0MB, and 20.0\xa0MB of it (20,971,520 bytes) are "
        "missing on box/cpu: lower kv_cache_tokens, or stop something else there."
    )
    (said,) = [each.seen for each in look_at_engines() if each.name == "engine large/0"]
    assert said == refused.refusal
    (large,) = [row for row in deployments_all() if row.name == "large"]
    assert (live_state(large).word, live_state(large).last_error) == (
        "Does not fit",
        refused.refusal,
    )


def test_what_was_refused_runs_as_soon_as_it_fits(device: Device) -> None:
    DeploymentFactory(model_version=version(700))
    assert reconcile(device).specs == ()
    Device.objects.update(free_bytes=1020 * MIB)
    found = reconcile(device)
    assert (len(found.specs), found.is_short) == (1, False)
    assert Replica.objects.get().refusal == ""


def test_what_runs_stays_though_memory_became_short(device: Device) -> None:
    DeploymentFactory(model_version=version(100))
    (spec,) = reconcile(device).specs
    Device.objects.update(free_bytes=0)
    assert reconcile(device, occupied={spec.process_id}).specs == (spec,)


def test_memory_is_reserved_while_an_engine_starts(device: Device) -> None:
    DeploymentFactory(name="first", model_version=version(300))
    (first,) = reconcile(device).specs
    DeploymentFactory(name="second", model_version=version(300))
    found = reconcile(device, occupied={first.process_id})
    assert [spec.name for spec in found.specs] == ["first-0"]
    assert "240.0" in Replica.objects.get(deployment__name="second").refusal


def test_an_engine_that_is_ready_holds_what_it_was_reserved(device: Device) -> None:
    """620 MiB of 1,000 are reserved; as soon as it holds 600 of them, 400 are free for others."""
    DeploymentFactory(name="first", model_version=version(300))
    (first,) = reconcile(device).specs
    EngineProcess.objects.update(
        state="ready", pid=1, stats={"rss_bytes": 600 * MIB}, info={"dtype": "bfloat16"}
    )
    Device.objects.update(free_bytes=400 * MIB)
    DeploymentFactory(name="second", model_version=version(60))
    found = reconcile(device, occupied={first.process_id})
    assert [spec.name for spec in found.specs] == ["first-0", "second-0"]
    Deployment.objects.filter(name="second").delete()
    DeploymentFactory(name="third", model_version=version(61))
    assert len(reconcile(device, occupied={first.process_id}).specs) == 1


def test_starting_what_does_not_fit_is_refused_and_changes_nothing(
    device: Device, actor: Actor
) -> None:
    deployment = DeploymentFactory(
        name="large", model_version=version(700), desired_state="stopped"
    )
    for service in (deployment_start, deployment_restart):
        with pytest.raises(ValidationError) as refusal:
            service(deployment=deployment, actor=actor)
        assert list(refusal.value.message_dict) == ["desired_state"]
        assert "(20,971,520 bytes)" in refusal.value.messages[0]
    stored = Deployment.objects.get()
    assert (stored.desired_state, stored.generation) == ("stopped", 1)
    assert not all_of(AuditEvent).exists()
    assert change_stamps() == {}


def test_making_and_enlarging_what_does_not_fit_is_refused(device: Device, actor: Actor) -> None:
    model = version(700)
    with pytest.raises(ValidationError):
        deployment_create(actor=actor, name="large", model_version=model)
    deployment = deployment_create(
        actor=actor, name="large", model_version=model, desired_state="stopped"
    )
    small = deployment_create(actor=actor, name="small", model_version=version(300))
    with pytest.raises(ValidationError, match="240"):
        deployment_update(deployment=small, actor=actor, min_replicas=2, max_replicas=2)
    assert Deployment.objects.get(name="small").n_replicas == 1
    deployment_update(deployment=deployment, actor=actor, max_replicas=5)  # it is stopped


def test_beside_what_runs_already(device: Device, actor: Actor) -> None:
    """What another deployment should run counts before the agent has made its rows."""
    DeploymentFactory(name="first", model_version=version(300))
    with pytest.raises(ValidationError, match="second"):
        deployment_create(actor=actor, name="second", model_version=version(300))


def test_an_agent_that_was_not_heard_of_says_nothing(device: Device, actor: Actor) -> None:
    Node.objects.update(seen_at=timezone.now() - timedelta(minutes=5))
    deployment_create(actor=actor, name="large", model_version=version(10_000))
    assert Deployment.objects.count() == 1


def test_the_page_says_what_it_needs_and_the_list_that_it_does_not_fit(
    device: Device, admin_client: Client
) -> None:
    deployment = DeploymentFactory(model_version=version(700))
    reconcile(device)
    page = reverse("admin:deployments_deployment_change", args=[deployment.pk])
    html = admin_client.get(page).content.decode()
    assert "(20,971,520 bytes)" in html
    assert "1020.0\xa0MB: 700.0\xa0MB of weights" in html
    listed = reverse("admin:deployments_deployment_changelist")
    assert "Does not fit" in admin_client.get(listed).content.decode()
    Deployment.objects.update(desired_state="stopped")
    admin_client.post(listed, {"action": "start_selected", "_selected_action": [deployment.pk]})
    assert "(20,971,520 bytes)" in messages(admin_client, listed)[0]
    assert Deployment.objects.get().desired_state == "stopped"


def test_nodes_are_shown_to_who_may_see_them(device: Device) -> None:
    url = reverse("admin:engines_node_change", args=[device.node_id])
    ReplicaFactory(deployment__name="chat", index=0, devices=[device], estimated_bytes=300 * MIB)
    gpu = DeviceFactory(node=device.node, kind="cuda", uid="GPU-0")
    for name, n_mib in (("x", 1000), ("y", 2000)):
        sleeper = DeploymentFactory(name=name, device_class="cuda", sleep_after_s=9)
        ReplicaFactory(deployment=sleeper, index=0, devices=[gpu], estimated_bytes=n_mib * MIB)
    assert staff("view_replica").get(url).status_code == 403
    client = staff("view_node", "view_device")
    html = client.get(url).content.decode()
    assert "chat/0" in html
    assert "1000.0\xa0MB of 16.0\xa0GB" in html
    assert "300.0\xa0MB" in html
    assert "1.0\xa0GB, and 1.5\xa0GB for whoever is awake of the 2 that sleep" in html
    assert client.post(url, {"name": "x"}).status_code == 403
    assert Node.objects.get().name == "box"


# -- what the agent reports ----------------------------------------------------------------------


def test_a_report_is_kept_and_devices_that_are_gone_go() -> None:
    def gpu(index: int) -> DeviceReport:
        return DeviceReport(
            kind="cuda",
            index=index,
            uid=f"GPU-{index}",
            name="A GPU",
            total_bytes=8,
            free_bytes=index,
            auto_dtype="bfloat16",
        )

    now = timezone.now()
    first = node_record(NodeReport(name="box", n_cores=4, devices=(gpu(0), gpu(1))), now=now)
    replica = ReplicaFactory(devices=[Device.objects.get(uid="GPU-0")])
    later = now + timedelta(seconds=10)
    again = node_record(NodeReport(name="box", n_cores=2, devices=(gpu(1),)), now=later)
    assert first.pk == again.pk
    assert (again.n_cores, again.seen_at) == (2, later)
    assert list(Device.objects.values_list("uid", "free_bytes")) == [("GPU-1", 1)]
    assert not replica.devices.exists()


# -- more and fewer replicas ---------------------------------------------------------------------


def test_scaling_is_one_event_within_the_bounds(actor: Actor) -> None:
    deployment = DeploymentFactory(name="chat", max_replicas=3)
    for _ in range(2):  # the second time it is so already
        deployment_scale(deployment_id=deployment.pk, n_replicas=9, because="Why.", actor=actor)
    stored = Deployment.objects.get()
    assert (stored.n_replicas, stored.scaled_because, stored.generation) == (3, "Why.", 1)
    assert stored.scaled_at is not None
    (event,) = all_of(AuditEvent)
    assert (event.action, event.changes) == (
        "deployment.scaled",
        {"n_replicas": [1, 3], "because": "Why."},
    )
    assert change_stamps()["deployments"] == 1
    assert deployment_scale(deployment_id=0, n_replicas=2, because="", actor=actor) is None


def test_one_too_many_runs_on_until_it_has_nothing_to_do(device: Device) -> None:
    deployment = DeploymentFactory(
        name="chat", model_version=version(10), min_replicas=1, n_replicas=2, max_replicas=2
    )
    first, second = reconcile(device).specs
    both = {first.process_id, second.process_id}
    EngineProcess.objects.update(state="ready", pid=1, info={"dtype": "bfloat16"})
    deployment_scale(deployment_id=deployment.pk, n_replicas=1, because="Night.", actor=SYSTEM)
    scaled_at = Deployment.objects.get().scaled_at
    assert scaled_at is not None

    for idle_at in ({}, {second.process_id: scaled_at + timedelta(seconds=1)}):
        found = reconcile(device, occupied=both, idle_at=idle_at)
        assert found.specs == (first, second)
        assert found.leaving == {second.process_id}
    idle_at = {second.process_id: scaled_at + timedelta(seconds=2.5)}
    assert reconcile(device, occupied=both, idle_at=idle_at).specs == (first,)
    assert reconcile(device, occupied={first.process_id}).specs == (first,)
    assert Replica.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_number_of_replicas_becomes_its_bounds_and_back() -> None:
    with migrated_back([("deployments", "0003_remote_servers")]) as old:
        model = old.get_model("registry", "RegisteredModel").objects.create(name="m")
        facts = {"n_parameters": 1, "context_length": 1, "vocab_size": 1, "size_bytes": 1}
        artifact = old.get_model("registry", "ModelVersion").objects.create(
            model=model, version=1, manifest={}, **facts
        )
        old.get_model("deployments", "Deployment").objects.create(
            name="chat", model_version=artifact, n_replicas=3
        )
    stored = Deployment.objects.get()
    assert (stored.min_replicas, stored.n_replicas, stored.max_replicas) == (3, 3, 3)
    Deployment.objects.all().delete()


# -- manage.py deploy ----------------------------------------------------------------------------


def deploy(*arguments: str, capsys: Any) -> str:
    call_command("deploy", *arguments)
    return str(capsys.readouterr().out)


def test_the_command_lists_stops_starts_and_scales(device: Device, capsys: Any) -> None:
    DeploymentFactory(name="chat", model_version=version(10))
    reconcile(device)
    assert "chat" in deploy("list", capsys=capsys)
    assert deploy("stop", "chat", capsys=capsys) == "chat stops.\n"
    assert deploy("start", "chat", capsys=capsys) == "chat is told to run.\n"
    assert deploy("scale", "chat", "--min", "1", "--max", "3", capsys=capsys) == (
        "chat runs 1 to 3 replicas, 1 now.\n"
    )
    stored = Deployment.objects.get()
    assert (stored.min_replicas, stored.max_replicas) == (1, 3)
    actions = [event.action for event in all_of(AuditEvent).order_by("id")]
    assert actions == ["deployment.stopped", "deployment.started", "deployment.updated"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("start", "nothing"), "there is no deployment nothing"),
        (("start", "large"), r"desired_state: .*\(20,971,520 bytes\) are missing"),
        (("scale", "large", "--min", "3", "--max", "2"), "max_replicas: At least the 3"),
        (("scale", "large"), "--min"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: tuple[str, ...], said: str, device: Device
) -> None:
    DeploymentFactory(name="large", model_version=version(700), desired_state="stopped")
    with pytest.raises(CommandError, match=said):
        call_command("deploy", *arguments)
    assert Deployment.objects.get().desired_state == "stopped"
    assert not all_of(AuditEvent).exists()


def test_who_may_not_change_deployments_changes_no_bounds() -> None:
    deployment = DeploymentFactory(model_version=ModelVersionFactory())
    EngineProcessFactory()
    page = reverse("admin:deployments_deployment_change", args=[deployment.pk])
    answer = staff("view_deployment").post(page, {"min_replicas": 2, "max_replicas": 2})
    assert answer.status_code == 403
    assert Deployment.objects.get().max_replicas == 1
    assert not all_of(AuditEvent).exists()
