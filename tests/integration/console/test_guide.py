"""The guided page: what it shows of the rows, what it proposes, what each of its buttons does, and
that nobody presses one who may not."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.deployments.models import Deployment
from apps.engines.models import Device
from apps.registry.models import ImportJob, ModelVersion, VerificationRun
from apps.routing.models import Route, RouteTarget
from tests.factories import (
    DeploymentFactory,
    DeviceFactory,
    EngineProcessFactory,
    ImportJobFactory,
    ModelVersionFactory,
    RegisteredModelFactory,
    ReplicaFactory,
    RouteFactory,
    RouteTargetFactory,
    VerificationRunFactory,
)
from tests.integration.console.pages import actions, staff
from tests.rows import all_of

pytestmark = pytest.mark.django_db

MIB = 2**20
STEPS = ("import", "verify", "deploy", "route", "watch")
DEPLOY = {
    "step": "deploy", "deploy-name": "chat-v2", "deploy-device_class": "auto",
    "deploy-quantization": "none", "deploy-kv_cache_tokens": "2048", "deploy-dtype": "auto",
    "deploy-min_replicas": "1", "deploy-max_replicas": "1",
}  # fmt: skip
# Looks at everything, and presses nothing.
VIEWS = (
    "view_modelversion", "view_importjob", "view_verificationrun", "view_deployment", "view_route",
    "view_usagerecord",
)  # fmt: skip


def guide(**query: Any) -> str:
    named = "&".join(f"{name}={getattr(row, 'pk', row)}" for name, row in query.items())
    return f"{reverse('admin:guide')}?{named}".rstrip("?")


def marks(html: str) -> dict[str, str]:
    return dict(re.findall(r'data-step="(\w+)" data-mark="(\w+)"', html))


def shown(client: Client, **query: Any) -> str:
    response = client.get(guide(**query))
    assert response.status_code == 200
    return response.content.decode()


def state() -> dict[str, list[Any]]:
    models = (ImportJob, ModelVersion, VerificationRun, Deployment, Route, RouteTarget, AuditEvent)
    return {model.__name__: list(all_of(model).order_by("pk").values()) for model in models}


@pytest.fixture(autouse=True)
def roots(settings: Any, tmp_path: Path) -> Path:
    """Where imports come from, with one file; and a machine with room for 1,000 MiB."""
    settings.IMPORT_ROOTS = [tmp_path / "imports"]
    settings.MODELS_DIR = tmp_path / "models"
    (tmp_path / "imports").mkdir()
    (tmp_path / "imports" / "weights.gguf").write_bytes(b"GGUF")
    DeviceFactory(node__name="box", free_bytes=1000 * MIB)
    return tmp_path


@pytest.fixture
def version() -> ModelVersion:
    """The second of a model whose first has a deployment and a route; verified, and of 100 MiB."""
    model = RegisteredModelFactory(name="chat")
    first = ModelVersionFactory(model=model, version=1, n_parameters=50 * MIB)
    deployment = DeploymentFactory(name="chat-v1", model_version=first)
    engine = EngineProcessFactory(ready=True, name="chat-v1-0", info={"dtype": "bfloat16"})
    ReplicaFactory(deployment=deployment, index=0, engine_process=engine)
    RouteFactory(name="chat", deployment=deployment)
    made: ModelVersion = ModelVersionFactory(
        model=model, version=2, n_parameters=50 * MIB, stage="verified"
    )
    return made


@pytest.fixture
def deployment(version: ModelVersion) -> Deployment:
    """Of the second version, and starting."""
    made: Deployment = DeploymentFactory(name="chat-v2", model_version=version)
    return made


def weights_form(deployment: Deployment, **weights: int) -> dict[str, Any]:
    """What the step of the route posts."""
    rows = list(RouteTarget.objects.select_related("deployment").order_by("pk"))
    form: dict[str, Any] = {"step": "route", "targets-INITIAL_FORMS": len(rows)}
    names = [row.deployment.name for row in rows]
    if deployment.name not in names:
        names.append(deployment.name)
    form["targets-TOTAL_FORMS"] = len(names)
    for n, name in enumerate(names):
        form[f"targets-{n}-deployment"] = Deployment.objects.get(name=name).pk
        form[f"targets-{n}-weight"] = weights[name.replace("-", "_")]
        form[f"targets-{n}-fallback_order"] = ""
        form[f"targets-{n}-route"] = Route.objects.get(name="chat").pk
        if n < len(rows):
            form[f"targets-{n}-id"] = rows[n].pk
    return form


class TestWhatItShows:
    def test_at_first_it_asks_for_a_file_that_is_there(self, admin_client: Client) -> None:
        html = shown(admin_client)
        assert marks(html) == dict(zip(STEPS, ["next", *["later"] * 4], strict=True))
        assert 'value="weights.gguf"' in html
        assert html.count('name="step"') == 1

    def test_it_goes_on_with_what_was_begun(
        self, admin_client: Client, version: ModelVersion
    ) -> None:
        job = ImportJobFactory(model_name="half-way", status="running")
        html = shown(admin_client)
        assert f'href="?import={job.pk}"' in html
        assert f'href="?version={version.pk}"' in html

    def test_an_import_that_runs_is_followed(self, admin_client: Client) -> None:
        job = ImportJobFactory(status="running", stage="convert", stage_done=5, stage_total=20)
        html = shown(admin_client, **{"import": job})
        assert marks(html)["import"] == "busy"
        assert "Converting: 5 of 20 tensors" in html
        assert f'data-live-topic="job={job.pk}"' in html

    def test_an_import_that_is_done_leads_to_its_version(
        self, admin_client: Client, version: ModelVersion
    ) -> None:
        job = ImportJobFactory(status="done", model_version=version)
        response = admin_client.get(guide(**{"import": job}))
        assert response["Location"] == guide(version=version)

    def test_an_import_that_failed_says_why_and_asks_again(self, admin_client: Client) -> None:
        job = ImportJobFactory(status="failed", model_name="chat", error="It has <no> tensors.")
        html = shown(admin_client, **{"import": job})
        assert marks(html)["import"] == "bad"
        assert "It has &lt;no&gt; tensors." in html
        assert 'value="chat"' in html

    def test_a_draft_is_verified_next_and_may_be_deployed_before(
        self, admin_client: Client, version: ModelVersion
    ) -> None:
        ModelVersion.objects.filter(pk=version.pk).update(stage="draft")
        html = shown(admin_client, version=version)
        assert marks(html) == {
            "import": "done", "verify": "next", "deploy": "later", "route": "later",
            "watch": "later",
        }  # fmt: skip
        assert "Deploy it before it is verified" in html

    def test_a_verification_is_followed(self, admin_client: Client, version: ModelVersion) -> None:
        run = VerificationRunFactory(version=version, status="running", step="answers", percent=40)
        html = shown(admin_client, version=version)
        assert marks(html)["verify"] == "busy"
        assert "Asking it, 40 %" in html
        assert f"run={run.pk}" in html

    def test_of_a_stage_that_is_not_deployed_it_says_so(
        self, admin_client: Client, version: ModelVersion, settings: Any
    ) -> None:
        settings.DEPLOY_STAGES = ("approved",)
        html = shown(admin_client, version=version)
        assert "chat v2 is verified; a deployment needs a version that is approved." in html
        assert marks(html)["deploy"] == "later"
        assert "Deploy it before" not in html
        assert 'value="approve"' in html

    def test_it_can_be_opened_at_the_end(
        self, admin_client: Client, deployment: Deployment, django_assert_max_num_queries: Any
    ) -> None:
        ReplicaFactory(deployment=deployment, index=0)
        RouteTargetFactory(route=Route.objects.get(), deployment=deployment, weight=30)
        with django_assert_max_num_queries(30):
            html = shown(admin_client, version=deployment.model_version)
        assert marks(html) == {
            "import": "done", "verify": "done", "deploy": "done", "route": "done", "watch": "busy",
        }  # fmt: skip
        assert f"route={Route.objects.get().pk}" in html
        assert re.findall(r'data-split-line="([\w-]+)"', html) == ["chat-v1", "chat-v2"]
        assert html.count('value="drain"') == 2
        RouteTarget.objects.filter(deployment=deployment).update(weight=0)
        html = shown(admin_client, version=deployment.model_version)
        assert (html.count('value="drain"'), html.count('value="stop"')) == (0, 1)

    def test_every_step_keeps_to_thirty_queries_beside_many_others(
        self, admin_client: Client, deployment: Deployment, django_assert_max_num_queries: Any
    ) -> None:
        for n in range(12):
            other = DeploymentFactory(model_version=ModelVersionFactory(n_parameters=MIB))
            ReplicaFactory(deployment=other, index=0)
            RouteTargetFactory(route=Route.objects.get(), deployment=other, weight=n)
            ImportJobFactory()
        version = deployment.model_version
        for query in ({}, {"version": version}, {"version": version, "deployment": "new"}):
            with django_assert_max_num_queries(30):
                shown(admin_client, **query)

    @pytest.mark.parametrize("name", ["version", "import"])
    @pytest.mark.parametrize("key", ["0", "x", "9" * 30, "new"])
    def test_what_is_not_there_is_not_found(
        self, name: str, key: str, admin_client: Client
    ) -> None:
        assert admin_client.get(guide(**{name: key})).status_code == 404

    @pytest.mark.parametrize("name", ["deployment", "route"])
    @pytest.mark.parametrize("key", ["0", "x", "9" * 30])
    def test_nor_what_belongs_to_a_version(
        self, name: str, key: str, admin_client: Client, version: ModelVersion
    ) -> None:
        assert admin_client.get(guide(version=version, **{name: key})).status_code == 404


class TestWhatItProposes:
    def test_the_next_number_of_a_model(self, admin_client: Client, version: ModelVersion) -> None:
        assert "It becomes chat v3, beside chat v2" in shown(admin_client, model="chat")

    def test_a_name_and_a_cache_for_one_whole_context(
        self, admin_client: Client, version: ModelVersion
    ) -> None:
        html = shown(admin_client, version=version)
        assert 'value="chat-v2"' in html
        assert 'value="2048"' in html
        assert "It fits beside what runs. A replica needs 420.0\xa0MB" in html
        DeploymentFactory(name="chat-v2")
        assert 'value="chat-v2-2"' in shown(admin_client, version=version, deployment="new")

    def test_less_of_a_cache_where_so_much_does_not_fit(
        self, admin_client: Client, version: ModelVersion, roots: Path
    ) -> None:
        """Of 200 KiB a token, 1,000 MiB take 1,024 beside the weights, and not 2,048."""
        shape = {
            "hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 100,
            "num_key_value_heads": 8, "intermediate_size": 16, "vocab_size": 16,
        }  # fmt: skip
        Deployment.objects.update(desired_state="stopped")
        directory = roots / "models" / version.path
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(shape))
        html = shown(admin_client, version=version)
        assert 'value="1024"' in html
        assert "It fits beside what runs." in html

    def test_a_tenth_for_a_newcomer_or_what_is_asked(
        self, admin_client: Client, deployment: Deployment
    ) -> None:
        version = deployment.model_version
        html = shown(admin_client, version=version)
        assert "They sum to 100: chat-v1 90.0 %, chat-v2 10.0 %." in html
        assert "chat-v2 is not ready" in html
        html = shown(admin_client, version=version, share=30)
        assert "They sum to 100: chat-v1 70.0 %, chat-v2 30.0 %." in html
        assert RouteTarget.objects.count() == 1

    def test_a_name_of_its_own_where_there_is_no_route(
        self, admin_client: Client, deployment: Deployment
    ) -> None:
        Route.objects.all().delete()
        html = shown(admin_client, version=deployment.model_version)
        assert "A new name: all of its requests go to chat-v2." in html
        assert 'name="route-name" value="chat"' in html


class TestChecks:
    """Sent to be looked at only: says what would be wrong, and changes nothing."""

    def checked(self, client: Client, form: dict[str, Any], **query: Any) -> str:
        before = state()
        response = client.post(guide(**query), {**form, "check": "1"})
        assert response.status_code == 200
        assert state() == before
        return response.content.decode()

    def test_an_import(self, admin_client: Client, version: ModelVersion) -> None:
        form = {"step": "import", "import-kind": "root", "import-model_name": "chat"}
        html = self.checked(admin_client, {**form, "import-source": "weights.gguf"})
        assert "It becomes chat v3, beside chat v2" in html
        assert "imports/weights.gguf" in html
        html = self.checked(admin_client, {**form, "import-source": "../../etc/passwd"})
        assert "There is no such file or folder below" in html

    def test_a_deployment_that_does_not_fit_says_how_much_is_missing(
        self, admin_client: Client, version: ModelVersion
    ) -> None:
        ModelVersion.objects.filter(pk=version.pk).update(n_parameters=400 * MIB)
        html = self.checked(admin_client, DEPLOY, version=version)
        assert "(566,231,040 bytes) are missing on box/cpu" in html

    def test_a_name_that_exists(self, admin_client: Client, version: ModelVersion) -> None:
        form = {**DEPLOY, "deploy-name": "chat-v1"}
        html = self.checked(admin_client, form, version=version)
        assert "Deployment with this Name already exists." in html

    def test_weights(self, admin_client: Client, deployment: Deployment) -> None:
        form = weights_form(deployment, chat_v1=70, chat_v2=50)
        html = self.checked(admin_client, form, version=deployment.model_version)
        assert "They sum to 120: chat-v1 58.3 %, chat-v2 41.7 %." in html
        form = weights_form(deployment, chat_v1=0, chat_v2=0)
        html = self.checked(admin_client, form, version=deployment.model_version)
        assert "At least one deployment needs a weight above 0." in html


class TestWhatItDoes:
    def test_the_whole_way_to_weights(self, admin_client: Client, version: ModelVersion) -> None:
        form = {"step": "import", "import-kind": "root", "import-model_name": "chat"}
        response = admin_client.post(guide(), {**form, "import-source": "weights.gguf"})
        job = ImportJob.objects.get()
        assert response["Location"] == guide(**{"import": job})
        assert job.source.endswith("/imports/weights.gguf")

        response = admin_client.post(guide(version=version), {"step": "verify"})
        assert response["Location"] == guide(version=version, route=Route.objects.get())
        assert VerificationRun.objects.get().version == version

        response = admin_client.post(guide(version=version), {"step": "approve"})
        version.refresh_from_db()
        assert version.stage == "approved"

        response = admin_client.post(guide(version=version), DEPLOY)
        deployment = Deployment.objects.get(name="chat-v2")
        assert response["Location"] == guide(version=version, deployment=deployment)
        assert (deployment.model_version, deployment.kv_cache_tokens) == (version, 2048)

        form = weights_form(deployment, chat_v1=70, chat_v2=30)
        response = admin_client.post(guide(version=version, deployment=deployment), form)
        route = Route.objects.get()
        here = guide(version=version, deployment=deployment, route=route)
        assert response["Location"] == here
        found = RouteTarget.objects.values_list("deployment__name", "weight")
        assert sorted(found) == [("chat-v1", 70), ("chat-v2", 30)]

        first = Deployment.objects.get(name="chat-v1")
        page = admin_client.post(here, {"step": "drain", "deployment": first.pk}, follow=True)
        assert "chat-v1 gets no new requests" in page.content.decode()
        assert dict(RouteTarget.objects.values_list("deployment__name", "weight")) == {
            "chat-v1": 0, "chat-v2": 30,
        }  # fmt: skip
        admin_client.post(here, {"step": "stop", "deployment": first.pk})
        first.refresh_from_db()
        assert first.desired_state == "stopped"
        assert actions() == [
            "import_job.created", "verification.asked", "model_version.stage_moved",
            "deployment.created", "route.updated", "route.updated", "deployment.stopped",
        ]  # fmt: skip

    def test_a_route_of_a_new_name(self, admin_client: Client, deployment: Deployment) -> None:
        url = guide(version=deployment.model_version, route="new")
        admin_client.post(url, {"step": "route", "route-name": "chat-next"})
        route = Route.objects.get(name="chat-next")
        assert [(each.deployment, each.weight) for each in route.targets.all()] == [
            (deployment, 100)
        ]

    def test_a_stopped_deployment_is_started(
        self, admin_client: Client, deployment: Deployment
    ) -> None:
        Deployment.objects.filter(pk=deployment.pk).update(desired_state="stopped")
        assert 'value="start"' in shown(admin_client, version=deployment.model_version)
        admin_client.post(guide(version=deployment.model_version), {"step": "start"})
        deployment.refresh_from_db()
        assert deployment.desired_state == "running"

    def test_what_a_service_refuses_is_said_and_nothing_is_changed(
        self, admin_client: Client, deployment: Deployment
    ) -> None:
        version, route = deployment.model_version, Route.objects.get()
        VerificationRunFactory(version=version)
        RouteTargetFactory(route=route, deployment=deployment, weight=0)
        first = Deployment.objects.get(name="chat-v1")
        here = guide(version=version)
        before = state()
        for form, said in (
            ({"step": "verify"}, "is being verified already"),
            ({"step": "drain", "deployment": first.pk}, "needs a weight above 0"),
            ({**DEPLOY, "deploy-name": "big", "deploy-min_replicas": "4",
              "deploy-max_replicas": "4"}, "are missing on box/cpu"),
        ):  # fmt: skip
            url = guide(version=version, deployment="new") if "deploy-name" in form else here
            html = admin_client.post(url, form, follow=True).content.decode()
            assert said in html, form
        assert state() == before

    def test_a_name_that_another_route_is_called_by(
        self, admin_client: Client, deployment: Deployment
    ) -> None:
        url = guide(version=deployment.model_version, route="new")
        before = state()
        html = admin_client.post(url, {"step": "route", "route-name": "chat"}).content.decode()
        assert "Route with this Name already exists." in html
        assert state() == before

    @pytest.mark.parametrize("step", ["", "x", "verify", "deploy", "route", "drain", "stop"])
    def test_what_is_about_nothing_is_not_found(self, step: str, admin_client: Client) -> None:
        before = state()
        assert admin_client.post(guide(), {"step": step}).status_code == 404
        assert state() == before


class TestWhoMay:
    def test_the_page_is_for_who_may_see_versions(self) -> None:
        assert Client().get(guide()).status_code == 302
        everything_else = staff(*(each for each in VIEWS if each != "view_modelversion"))
        assert everything_else.get(guide()).status_code == 403

    def test_a_viewer_sees_and_is_offered_nothing(self, deployment: Deployment) -> None:
        RouteTargetFactory(route=Route.objects.get(), deployment=deployment, weight=30)
        html = shown(staff(*VIEWS), version=deployment.model_version)
        assert marks(html)["route"] == "done"
        assert 'data-split-line="chat-v2"' in html
        assert 'name="step"' not in html
        for said in ("You may not change this route.", "Verify again", "Approve"):
            assert (said in html) == said.startswith("You")
        assert 'name="step"' not in shown(staff(*VIEWS))

    def test_who_may_not_see_deployments_or_the_ledger_is_told_nothing_of_them(
        self, deployment: Deployment
    ) -> None:
        RouteTargetFactory(route=Route.objects.get(), deployment=deployment, weight=30)
        html = shown(staff("view_modelversion"), version=deployment.model_version)
        assert "chat-v1" not in html
        html = shown(
            staff("view_modelversion", "view_deployment", "view_route"),
            version=deployment.model_version,
        )
        assert "data-split" not in html
        assert "You may not see how requests are shared." in html

    @pytest.mark.parametrize(
        ("step", "lacking"),
        [
            ("import", "add_importjob"),
            ("verify", "add_verificationrun"),
            ("approve", "approve_modelversion"),
            ("deploy", "add_deployment"),
            ("route", "change_route"),
            ("drain", "change_route"),
            ("stop", "change_deployment"),
            ("start", "change_deployment"),
        ],
    )
    def test_each_button_is_refused_without_its_permission(
        self, step: str, lacking: str, deployment: Deployment
    ) -> None:
        """To somebody who holds all others, so that it is this one that is lacking."""
        route = Route.objects.get()
        RouteTargetFactory(route=route, deployment=deployment, weight=30)
        Device.objects.update(free_bytes=4000 * MIB)
        if step == "start":
            Deployment.objects.filter(pk=deployment.pk).update(desired_state="stopped")
        powers = {
            "add_importjob", "add_verificationrun", "approve_modelversion", "add_deployment",
            "change_deployment", "change_route", "add_route",
        }  # fmt: skip
        forms: dict[str, Callable[[], dict[str, Any]]] = {
            "import": lambda: {
                "import-kind": "root", "import-model_name": "chat",
                "import-source": "weights.gguf",
            },
            "deploy": lambda: {**DEPLOY, "deploy-name": "another"},
            "route": lambda: weights_form(deployment, chat_v1=1, chat_v2=1),
        }  # fmt: skip
        form = {**forms.get(step, dict)(), "step": step, "deployment": str(deployment.pk)}
        url = guide(version=deployment.model_version, deployment=deployment, route=route)
        before = state()
        client = staff(*VIEWS, *(powers - {lacking}))
        assert client.post(url, form).status_code == 403
        assert state() == before
        assert staff(*VIEWS, *powers).post(url, form).status_code == 302
        assert state() != before

    def test_a_post_from_elsewhere_is_refused(self, version: ModelVersion) -> None:
        user = apps.get_model("rbac.User").objects.create(
            username="x", is_staff=True, is_superuser=True
        )
        client = Client(enforce_csrf_checks=True)
        client.force_login(user)
        before = state()
        assert client.post(guide(version=version), {"step": "verify"}).status_code == 403
        assert state() == before
