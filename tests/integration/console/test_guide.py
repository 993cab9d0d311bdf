"""The guided page: what it shows of the rows, and what it proposes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from apps.deployments.models import Deployment
from apps.registry.models import ModelVersion
from apps.routing.models import Route, RouteTarget
from tests.factories import (
    DeploymentFactory,
    ImportJobFactory,
    ModelVersionFactory,
    ReplicaFactory,
    RouteTargetFactory,
    VerificationRunFactory,
)
from tests.integration.console.guides import (
    MIB,
    STEPS,
    deployment,
    guide,
    marks,
    roots,
    shown,
    version,
)

__all__ = ["deployment", "roots", "version"]

pytestmark = pytest.mark.django_db


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
