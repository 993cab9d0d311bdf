"""Every list of the admin, in a bounded number of queries, however many rows there are."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib import admin
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from apps.metering.models import UsageRecord
from tests.factories import (
    ApiTokenFactory,
    AuditEventFactory,
    BatchFactory,
    DeploymentFactory,
    EndUserFactory,
    EngineProcessFactory,
    FailedSignInFactory,
    GroupMappingFactory,
    ImportJobFactory,
    MembershipFactory,
    MetricEventFactory,
    ModelVersionFactory,
    NodeFactory,
    PlanFactory,
    QuarantinedRequestFactory,
    RegisteredModelFactory,
    RemoteServerFactory,
    ReplicaFactory,
    RoleFactory,
    RolloutFactory,
    RouteFactory,
    TenantFactory,
    TokenFamilyFactory,
    UploadedFileFactory,
    UsageRecordFactory,
    UserFactory,
    VerificationRunFactory,
)
from tests.factories.experiments import AssignmentFactory, ExperimentFactory, LayerFactory
from tests.factories.judging import JudgeFactory
from tests.rows import all_of, copied

pytestmark = pytest.mark.django_db

MAX_QUERIES = 12
N_ROWS = 50


MAKERS: dict[str, Callable[..., Any]] = {
    "audit_auditevent": AuditEventFactory,
    "tenants_plan": PlanFactory,
    "tenants_tenant": TenantFactory,
    "tenants_membership": MembershipFactory,
    "tenants_enduser": EndUserFactory,
    "rbac_user": UserFactory,
    "rbac_role": RoleFactory,
    "rbac_groupmapping": GroupMappingFactory,
    "rbac_apitoken": ApiTokenFactory,
    "rbac_tokenfamily": TokenFamilyFactory,
    "sign_in_person": UserFactory,
    "sign_in_failedsignin": FailedSignInFactory,
    "registry_registeredmodel": RegisteredModelFactory,
    "registry_modelversion": ModelVersionFactory,
    "registry_verificationrun": VerificationRunFactory,
    "registry_importjob": ImportJobFactory,
    "engines_engineprocess": EngineProcessFactory,
    "engines_node": NodeFactory,
    "engines_quarantinedrequest": QuarantinedRequestFactory,
    "deployments_deployment": DeploymentFactory,
    "deployments_replica": ReplicaFactory,
    "deployments_remoteserver": RemoteServerFactory,
    "routing_route": RouteFactory,
    "experiments_experiment": ExperimentFactory,
    "experiments_layer": LayerFactory,
    "experiments_assignment": AssignmentFactory,
    "judging_judge": JudgeFactory,
    "rollouts_rollout": RolloutFactory,
    "metering_usagerecord": UsageRecordFactory,
    "feedback_metricevent": MetricEventFactory,
    "batches_batch": BatchFactory,
    "batches_uploadedfile": UploadedFileFactory,
}


def test_every_registered_model_is_tested_here() -> None:
    registered = {
        f"{model._meta.app_label}_{model._meta.model_name}" for model in admin.site._registry
    }
    assert registered == set(MAKERS)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_list_of_fifty_rows(
    name: str, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    for _ in range(N_ROWS):
        MAKERS[name]()
    with django_assert_max_num_queries(MAX_QUERIES):
        response = admin_client.get(reverse(f"admin:{name}_changelist"))
    assert response.status_code == 200
    assert len(response.context["cl"].result_list) == N_ROWS


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_list_with_a_search_and_page_of_one_object(name: str, admin_client: Client) -> None:
    obj = MAKERS[name]()
    response = admin_client.get(reverse(f"admin:{name}_changelist"), {"q": "nothing like this"})
    assert response.status_code == 200
    assert list(response.context["cl"].result_list) == []
    page = admin_client.get(reverse(f"admin:{name}_change", args=[obj.pk]))
    assert page.status_code == 200


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_lists_are_closed_to_those_without_permission(name: str) -> None:
    MAKERS[name]()
    url = reverse(f"admin:{name}_changelist")
    client = Client()
    assert client.get(url)["Location"] == f"{reverse('admin:login')}?next={url}"
    client.force_login(UserFactory(is_staff=True))
    assert client.get(url).status_code == 403


@pytest.fixture
def ledger(db: None) -> int:
    """20,000 rows of one tenant, all completed but the oldest."""
    tenant_id = TenantFactory(name="Acme").pk
    UsageRecordFactory(tenant_id=tenant_id, request_id=f"req-{0:032x}", outcome="failed")
    second = UsageRecordFactory(tenant_id=tenant_id, request_id=f"req-{1:032x}")
    copied(second, n=19_998, request_id="req-" + "0" * 16)
    assert all_of(UsageRecord).count() == 20_000
    return int(tenant_id)


def test_ledger_of_twenty_thousand_rows(ledger: int, admin_client: Client) -> None:
    url = reverse("admin:metering_usagerecord_changelist")
    queries_of = {}
    for label, query in {
        "plain": {},
        "last page": {"p": "200"},
        "filtered": {"outcome__exact": "failed", "tenant": str(ledger)},
        "door": {"door": "websocket"},
    }.items():
        with CaptureQueriesContext(connection) as queries:
            response = admin_client.get(url, query)
        assert response.status_code == 200
        queries_of[label] = [entry["sql"] for entry in queries.captured_queries]
        assert len(queries_of[label]) <= MAX_QUERIES
        assert response.context["cl"].result_count <= 10_000
    ledger_reads = [
        sql for sqls in queries_of.values() for sql in sqls if '"metering_usagerecord"' in sql
    ]
    assert ledger_reads
    for sql in ledger_reads:
        assert "LIMIT" in sql or '"id" > ' in sql, f"reads without a bound: {sql}"
        assert "DISTINCT" not in sql


def test_list_looks_at_the_newest_rows_only(
    ledger: int, admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = reverse("admin:metering_usagerecord_changelist")
    query = {"outcome__exact": "failed"}
    assert admin_client.get(url, query).context["cl"].result_count == 1
    monkeypatch.setattr("apps.metering.admin.LISTED_ROWS", 19_999)
    assert admin_client.get(url, query).context["cl"].result_count == 0


def test_whose_requests_are_old_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest that one may see, whatever others have asked since."""
    monkeypatch.setattr("apps.metering.admin.LISTED_ROWS", 3)
    seen, other = TenantFactory(), TenantFactory()
    for request_id in ("first", "second"):
        UsageRecordFactory(tenant_id=seen.pk, request_id=request_id)
    for number in range(5):
        UsageRecordFactory(tenant_id=other.pk, request_id=f"other-{number}")
    user = UserFactory(is_staff=True)
    for tenant in (seen, TenantFactory()):
        MembershipFactory(user=user, tenant=tenant, role="viewer")
    client = Client()
    client.force_login(user)
    page = client.get(reverse("admin:metering_usagerecord_changelist"))
    assert [row.request_id for row in page.context["cl"].result_list] == ["second", "first"]


def test_an_old_request_is_found_by_its_id(ledger: int, admin_client: Client) -> None:
    oldest = all_of(UsageRecord).order_by("id")[0]
    response = admin_client.get(
        reverse("admin:metering_usagerecord_changelist"), {"q": f" {oldest.request_id} "}
    )
    assert list(response.context["cl"].result_list) == [oldest]
    assert "Acme" in response.content.decode()
