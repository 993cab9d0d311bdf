"""Pages of one object that somebody was given: it leads them to no other."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse
from guardian.shortcuts import assign_perm

from apps.deployments.models import Deployment
from apps.rbac.models import User
from apps.routing.models import Route, RouteTarget
from tests.factories import (
    DeploymentFactory,
    ModelVersionFactory,
    RouteFactory,
    TenantFactory,
    UserFactory,
)
from tests.integration.console.pages import actions, inline, targets_form

pytestmark = pytest.mark.django_db


@pytest.fixture
def bob() -> User:
    return UserFactory(is_staff=True, username="bob")


@pytest.fixture
def page(bob: User) -> Client:
    client = Client()
    client.force_login(bob)
    return client


def route_form(route: Route, **changed: Any) -> dict[str, Any]:
    return {
        "name": route.name,
        "description": "changed",
        "is_active": "on",
        "tenants": [tenant.pk for tenant in route.tenants.all()],
        **inline("routeuserobjectpermission_set"),
        **targets_form(route),
        **changed,
    }


def leads_to() -> list[int]:
    return list(RouteTarget.objects.values_list("deployment_id", flat=True))


def url_of(obj: Any) -> str:
    return reverse(f"admin:{obj._meta.app_label}_{obj._meta.model_name}_change", args=[obj.pk])


def test_a_route_that_was_given_leads_nowhere_else(bob: User, page: Client) -> None:
    """Else it would open a model that is for others alone."""
    route, secret = RouteFactory(), DeploymentFactory(name="for-others")
    other = TenantFactory()
    assign_perm("change_route", bob, route)
    answer = page.post(url_of(route), route_form(route, tenants=[other.pk]))
    assert list(answer.context["adminform"].form.errors) == ["tenants"]
    beside = targets_form(route, {"deployment": secret.pk, "weight": 1})
    for changed in ({"targets-0-deployment": secret.pk}, beside):
        answer = page.post(url_of(route), route_form(route, **changed))
        assert answer.status_code == 200
        (errors,) = [each.formset.errors for each in answer.context["inline_admin_formsets"]]
        assert [list(each) for each in errors if each] == [["deployment"]]
    assert (leads_to(), Route.objects.get().description) == ([route.deployment.pk], "")
    assert not Route.objects.get().tenants.exists()
    assert actions() == []


def test_what_is_chosen_now_stays(bob: User, page: Client) -> None:
    route = RouteFactory()
    route.tenants.add(TenantFactory())
    assign_perm("change_route", bob, route)
    assert page.post(url_of(route), route_form(route)).status_code == 302
    route.refresh_from_db()
    assert (route.description, route.tenants.count()) == ("changed", 1)


def test_it_leads_to_what_else_was_given(bob: User, page: Client) -> None:
    route, mine = RouteFactory(), DeploymentFactory()
    assign_perm("change_route", bob, route)
    assign_perm("view_deployment", bob, mine)
    assert (
        page.post(url_of(route), route_form(route, **{"targets-0-deployment": mine.pk})).status_code
        == 302
    )
    assert leads_to() == [mine.pk]


def test_a_deployment_that_was_given_runs_no_other_model(bob: User, page: Client) -> None:
    deployment, secret = DeploymentFactory(), ModelVersionFactory()
    assign_perm("change_deployment", bob, deployment)
    form = {
        "model_version": secret.pk,
        "desired_state": deployment.desired_state,
        "min_replicas": 1,
        "max_replicas": 1,
        "target_wait_ms": deployment.target_wait_ms,
        "device_class": deployment.device_class,
        "backend": deployment.backend,
        "quantization": deployment.quantization,
        "dtype": deployment.dtype,
        "kv_cache_tokens": deployment.kv_cache_tokens,
        "max_sequences": deployment.max_sequences,
        "max_batched_tokens": deployment.max_batched_tokens,
        "kv_cache_dtype": deployment.kv_cache_dtype,
        "speculation": deployment.speculation,
        "attention": deployment.attention,
        "tensor_parallel": deployment.tensor_parallel,
        **inline("replicas"),
        **inline("deploymentuserobjectpermission_set"),
    }
    answer = page.post(url_of(deployment), form)
    assert "model_version" in answer.context["adminform"].form.errors
    assert Deployment.objects.get().model_version_id == deployment.model_version_id
    form |= {"model_version": deployment.model_version_id, "min_replicas": 2, "max_replicas": 2}
    answer = page.post(url_of(deployment), {**form, "draft_version": secret.pk})
    assert list(answer.context["adminform"].form.errors) == ["draft_version"]
    assert Deployment.objects.get().draft_version is None
    assert page.post(url_of(deployment), form).status_code == 302
    assert Deployment.objects.get().n_replicas == 2


def test_who_may_change_all_routes_chooses_from_all_that_they_see() -> None:
    route, other = RouteFactory(), DeploymentFactory()
    user = UserFactory(is_staff=True)
    names = ("view_route", "change_route", "view_deployment")
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    client = Client()
    client.force_login(user)
    assert (
        client.post(
            url_of(route), route_form(route, **{"targets-0-deployment": other.pk})
        ).status_code
        == 302
    )
    assert leads_to() == [other.pk]
