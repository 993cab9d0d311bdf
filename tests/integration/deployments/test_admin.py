"""The pages of deployments, engines and models."""

from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse

from apps.deployments.models import Deployment, Replica
from apps.engines.models import EngineProcess
from apps.registry.models import RegisteredModel
from tests.factories import (
    DeploymentFactory,
    EngineProcessFactory,
    ModelVersionFactory,
    ReplicaFactory,
    RouteFactory,
)
from tests.integration.console.pages import actions, inline, messages, staff

pytestmark = pytest.mark.django_db

LIST = reverse("admin:deployments_deployment_changelist")


def form(deployment: Deployment, **changed: object) -> dict[str, object]:
    fields = {
        "model_version": deployment.model_version_id,
        "desired_state": deployment.desired_state,
        "min_replicas": deployment.min_replicas,
        "max_replicas": deployment.max_replicas,
        "target_wait_ms": deployment.target_wait_ms,
        "device_class": deployment.device_class,
        "backend": deployment.backend,
        "quantization": deployment.quantization,
        "dtype": deployment.dtype,
        "max_model_len": "",
        "remote_task": "generate",
        "kv_cache_tokens": deployment.kv_cache_tokens,
        "max_sequences": deployment.max_sequences,
        "max_batched_tokens": deployment.max_batched_tokens,
        "kv_cache_dtype": deployment.kv_cache_dtype,
        "speculation": deployment.speculation,
        "attention": deployment.attention,
        "tensor_parallel": deployment.tensor_parallel,
        "sleep_after_s": "",
        "host_kv_cache_bytes": "",
        "disk_kv_cache_bytes": "",
        "draft_version": deployment.draft_version_id or "",
        "replicas-TOTAL_FORMS": 0,
        "replicas-INITIAL_FORMS": 0,
        **inline("deploymentuserobjectpermission_set"),
    }
    return {**fields, **changed}


def test_a_deployment_is_added_and_changed_by_the_services(admin_client: Client) -> None:
    draft = DeploymentFactory.build(model_version=ModelVersionFactory())
    url = reverse("admin:deployments_deployment_add")
    answer = admin_client.post(url, form(draft, name="chat"))
    assert answer.status_code == 302, answer.context["errors"]
    deployment = Deployment.objects.get(name="chat")
    url = reverse("admin:deployments_deployment_change", args=[deployment.pk])
    assert admin_client.post(url, form(deployment, dtype="float32")).status_code == 302
    deployment.refresh_from_db()
    assert (deployment.dtype, deployment.generation) == ("float32", 2)
    assert actions() == ["deployment.created", "deployment.updated"]


def test_the_list_shows_what_runs(admin_client: Client) -> None:
    process = EngineProcessFactory(ready=True, stats={"n_running": 3, "n_waiting": 4})
    ReplicaFactory(deployment=DeploymentFactory(n_replicas=2), index=0, engine_process=process)
    page = admin_client.get(LIST).content.decode()
    for said in ("Degraded", "1 of 2", "3 / 4"):
        assert said in page


@pytest.mark.parametrize(
    ("action", "desired", "generation", "event"),
    [
        ("stop_selected", "stopped", 1, "deployment.stopped"),
        ("restart_selected", "running", 2, "deployment.restarted"),
    ],
)
def test_actions(
    action: str, desired: str, generation: int, event: str, admin_client: Client
) -> None:
    deployment = DeploymentFactory()
    data = {"action": action, "_selected_action": [deployment.pk]}
    admin_client.post(LIST, data)
    deployment.refresh_from_db()
    assert (deployment.desired_state, deployment.generation) == (desired, generation)
    assert actions() == [event]


def test_who_may_only_look_starts_and_stops_nothing() -> None:
    deployment = DeploymentFactory()
    client = staff("view_deployment")
    assert client.get(LIST).status_code == 200
    client.post(LIST, {"action": "stop_selected", "_selected_action": [deployment.pk]})
    deployment.refresh_from_db()
    assert deployment.desired_state == "running"
    assert actions() == []


def test_one_with_replicas_is_deleted_and_they_go_with_it(admin_client: Client) -> None:
    deployment = ReplicaFactory().deployment
    url = reverse("admin:deployments_deployment_delete", args=[deployment.pk])
    assert admin_client.get(url).status_code == 200
    assert admin_client.post(url, {"post": "yes"}).status_code == 302
    assert not Deployment.objects.exists()
    assert not Replica.objects.exists()
    assert actions() == ["deployment.deleted"]


def test_who_may_not_delete_deletes_none() -> None:
    deployment = ReplicaFactory().deployment
    client = staff("view_deployment", "change_deployment")
    url = reverse("admin:deployments_deployment_delete", args=[deployment.pk])
    assert client.post(url, {"post": "yes"}).status_code == 403
    assert Replica.objects.exists()
    assert actions() == []


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"max_sequences": 64, "max_batched_tokens": 63}, "max_batched_tokens"),
        ({"kv_cache_tokens": 1024, "max_model_len": 1025}, "max_model_len"),
        ({"max_model_len": 8193}, "max_model_len"),
    ],
)
def test_what_an_engine_would_refuse_is_a_form_error(
    changed: dict[str, object], wrong: str, admin_client: Client
) -> None:
    draft = DeploymentFactory.build(model_version=ModelVersionFactory(context_length=8192))
    url = reverse("admin:deployments_deployment_add")
    answer = admin_client.post(url, form(draft, name="chat", **changed))
    assert list(answer.context["adminform"].form.errors) == [wrong]
    assert not Deployment.objects.exists()
    empty = dict.fromkeys(("model_version", "max_sequences", "max_batched_tokens"), "")
    answer = admin_client.post(url, form(draft, name="chat", **{**changed, **empty}))
    assert set(answer.context["adminform"].form.errors) >= set(empty)


def test_one_that_a_route_leads_to_is_kept_and_the_page_says_why(admin_client: Client) -> None:
    deployment = RouteFactory(name="public").deployment
    url = reverse("admin:deployments_deployment_delete", args=[deployment.pk])
    admin_client.post(url, {"post": "yes"})
    assert Deployment.objects.filter(pk=deployment.pk).exists()
    assert actions() == []
    assert all("deleted successfully" not in said for said in messages(admin_client, LIST))


def test_the_engine_page_shows_the_end_of_the_log(admin_client: Client, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("".join(f"line {n} <b>\n" for n in range(1000)))
    process = EngineProcessFactory(
        ready=True, log_path=str(log), stats={"rss_bytes": 1024**3}, info={"backend": "native"}
    )
    EngineProcess.objects.update(
        stats={
            "n_running": 1,
            "n_waiting": 0,
            "n_blocks_free": 5,
            "n_blocks_total": 2048,
            "rss_bytes": 1024**3,
            "steps": {"n_steps": 512, "forward_ms": {"median": 14.25, "worst": 90.5}},
        }
    )
    EngineProcess.objects.update(info={"backend": "native", "embedding_size": None})
    url = reverse("admin:engines_engineprocess_change", args=[process.pk])
    page = admin_client.get(url).content.decode()
    assert "line 800 &lt;b&gt;" in page
    assert "line 799" not in page
    for said in ("5 of 2,048", "1.0\xa0GB", "native", "14.25, 90.50", ">512<"):
        assert said in page
    for unsaid in ("embedding size", "{&#x27;", "None<"):
        assert unsaid not in page
    assert admin_client.post(url, {"state": "failed"}).status_code == 403


def test_a_models_description_is_edited_by_its_service(admin_client: Client) -> None:
    version = ModelVersionFactory(manifest={"format": 1, "files": {}})
    url = reverse("admin:registry_registeredmodel_change", args=[version.model_id])
    data = {"description": "Small", "versions-TOTAL_FORMS": 0, "versions-INITIAL_FORMS": 0}
    assert admin_client.post(url, data).status_code == 302
    assert RegisteredModel.objects.get().description == "Small"
    assert actions() == ["registered_model.updated"]
    url = reverse("admin:registry_modelversion_change", args=[version.pk])
    assert "&quot;format&quot;: 1" in admin_client.get(url).content.decode()
