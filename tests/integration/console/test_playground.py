"""The playground page by itself: who may see it, and what it lists."""

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from apps.deployments.models import Deployment
from apps.routing.models import Route
from apps.tenants.models import Membership
from tests.factories import (
    DeploymentFactory,
    ModelVersionFactory,
    RouteFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db

PAGE = "/admin/playground/"
MODELS = "/admin/playground/models/"


def test_only_staff_come_in() -> None:
    client = Client()
    for url in (PAGE, MODELS):
        answer = client.get(url)
        assert (answer.status_code, answer["Location"]) == (302, f"/admin/login/?next={url}")
    client.force_login(UserFactory(username="visitor"))
    assert client.get(PAGE).status_code == 302


def test_models_tell_readiness_and_length(admin_client: Client, deployment: Deployment) -> None:
    slow = DeploymentFactory(max_model_len=2048)
    RouteFactory(name="a-loading-model", deployment=slow)
    stopped = DeploymentFactory(desired_state=Deployment.DesiredState.STOPPED)
    RouteFactory(name="stopped-model", deployment=stopped)
    RouteFactory(name="switched-off", deployment=deployment, is_active=False)
    embedding = DeploymentFactory(model_version=ModelVersionFactory(architecture="BertModel"))
    RouteFactory(name="nothing-to-chat-with", deployment=embedding)
    answer = admin_client.get(MODELS)
    assert "no-store" in answer["Cache-Control"]
    assert answer.json() == {
        "models": [
            {"name": "a-loading-model", "is_ready": False, "context_length": 2048},
            {"name": "ready-model", "is_ready": True, "context_length": 8192},
            {"name": "stopped-model", "is_ready": False, "context_length": None},
        ]
    }


def test_models_are_for_members(admin_client: Client, member: Membership) -> None:
    RouteFactory(name="everyones")
    RouteFactory(name="hidden", is_restricted=True)
    names = [each["name"] for each in admin_client.get(MODELS).json()["models"]]
    assert names == ["everyones", "hidden"]  # a superuser uses every route
    member.delete()
    assert admin_client.get(MODELS).json() == {"models": []}


def test_models_cost_eight_queries_however_many(
    admin_client: Client, member: Membership, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(20):
        RouteFactory()
    # session, user, tenant, routes, where they lead, further names, replicas, deployments
    with django_assert_num_queries(8):
        admin_client.get(MODELS)


def test_the_page_runs_no_script_of_its_own_inline(
    admin_client: Client, deployment: Deployment
) -> None:
    Route.objects.update(name="</script><b>x")
    html = admin_client.get(PAGE).content.decode()
    content = html[html.index('id="playground-data"') : html.index('id="pg-snippets"')]
    assert "</script><b>" not in content
    assert content.count("<script") == 0
    assert " on" + "click=" not in content
