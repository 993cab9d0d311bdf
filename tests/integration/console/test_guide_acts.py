"""The guided page: what it checks beforehand, what each of its buttons does, and that nobody
presses one who may not."""

from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.test import Client

from apps.deployments.models import Deployment
from apps.engines.models import Device
from apps.registry.models import ImportJob, ModelVersion, VerificationRun
from apps.routing.models import Route, RouteTarget
from tests.factories import (
    RouteTargetFactory,
    VerificationRunFactory,
)
from tests.integration.console.guides import (
    DEPLOY,
    MIB,
    VIEWS,
    deployment,
    guide,
    marks,
    roots,
    shown,
    state,
    version,
    weights_form,
)
from tests.integration.console.pages import actions, staff

__all__ = ["deployment", "roots", "version"]

pytestmark = pytest.mark.django_db


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
        assert first.desired_state == "draining"
        assert actions() == [
            "import_job.created", "verification.asked", "model_version.stage_moved",
            "deployment.created", "route.updated", "route.updated", "deployment.draining",
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
