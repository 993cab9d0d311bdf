"""The part of a deployment's page that follows it, as the server makes it."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from guardian.shortcuts import assign_perm

from apps.deployments.models import Deployment
from apps.engines.models import EngineCrash, EngineProcess
from tests.factories import (
    DeploymentFactory,
    EngineProcessFactory,
    EngineSampleFactory,
    ReplicaFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db

MAX_QUERIES = 10


@pytest.fixture
def deployment() -> Deployment:
    deployment: Deployment = DeploymentFactory(name="m", n_replicas=3)
    for index in range(3):
        engine = EngineProcessFactory(
            name=f"m-{index}",
            state="crash_loop",
            last_error=f"5 crashes in a row <{index}>",
            tries_again_at=timezone.now() + timedelta(minutes=9),
        )
        ReplicaFactory(deployment=deployment, index=index, engine_process=engine)
        for n in range(50):
            at = timezone.now() - timedelta(seconds=10 * n)
            EngineSampleFactory(engine_name=engine.name, at=at)
        EngineCrash.objects.create(
            engine_name=engine.name,
            epoch=1,
            at=timezone.now(),
            reason=f"killed by SIGSEGV {index}",
            log_end="<last words>",
        )
    EngineSampleFactory(engine_name="another-0", completion_tokens_per_s=12345)
    return deployment


def url(deployment: Deployment) -> str:
    return reverse("admin:deployment_watch", args=[deployment.pk])


def test_it_says_what_is_wrong_in_a_bounded_number_of_queries(
    deployment: Deployment, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(MAX_QUERIES):
        response = admin_client.get(url(deployment))
    html = response.content.decode()
    assert "no-store" in response["Cache-Control"]
    assert html.count("Crash loop") == 4
    for text in (
        "5 crashes in a row &lt;2&gt;",
        "Tried again by itself at",
        "killed by SIGSEGV 1",
        "&lt;last words&gt;",
        "Throughput, tokens a second",
    ):
        assert text in html
    assert "12,345" not in html
    plots = admin_client.get(url(deployment), {"part": "plots", "range": "day"}).content.decode()
    assert "Nothing was measured in this time." in plots
    assert "Crash loop" not in plots


def test_the_page_itself_keeps_to_its_bound(
    deployment: Deployment, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(30):
        page = admin_client.get(
            reverse("admin:deployments_deployment_change", args=[deployment.pk])
        )
    assert f'data-url="{url(deployment)}"' in page.content.decode()
    assert "console/live.js" in page.content.decode()


def test_it_is_for_those_who_may_see_the_deployment(deployment: Deployment) -> None:
    bob = UserFactory(is_staff=True)
    client = Client()
    client.force_login(bob)
    assert client.get(url(deployment)).status_code == 404
    other = DeploymentFactory()
    assign_perm("deployments.view_deployment", bob, other)
    assert client.get(url(deployment)).status_code == 404
    assign_perm("deployments.view_deployment", bob, deployment)
    html = client.get(url(deployment)).content.decode()
    assert "Crash loop" in html
    for text in ("last words", "End of the log", "SIGSEGV"):
        assert text not in html


@pytest.mark.parametrize("key", ["0", "x", "9" * 30])
def test_there_is_no_page_of_none(key: str, admin_client: Client) -> None:
    assert admin_client.get(reverse("admin:deployment_watch", args=[key])).status_code == 404


def test_it_says_how_far_files_are(deployment: Deployment, admin_client: Client) -> None:
    first = EngineProcess.objects.order_by("pk")[0]
    part = {"n_fetched_bytes": 3 << 20, "n_fetch_bytes": 8 << 20}
    EngineProcess.objects.filter(pk=first.pk).update(state="fetching", **part)
    html = admin_client.get(url(deployment)).content.decode().replace("\xa0", " ")
    assert f'data-live="e{first.pk}.files">3.0 MB of 8.0 MB fetched</p>' in html
