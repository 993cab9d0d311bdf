"""A query of tenants' rows says whose it wants, or does not run."""

from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q

from apps.audit.models import AuditEvent
from apps.batches.models import BatchItem
from apps.core.tenancy import every_tenant
from apps.core.tenant_rows import TenantNotSaid, TenantRows
from apps.metering.models import Meter, UsageRecord
from apps.rbac.models import ApiToken, RoleGrant, TokenFamily
from apps.tenants.models import EndUser, Membership, Tenant
from tests.factories import ApiTokenFactory, EndUserFactory, MembershipFactory, TenantFactory
from tests.rows import all_of

pytestmark = pytest.mark.django_db

OWNED = [model for model in apps.get_models() if issubclass(model, TenantRows)]


# It asks in the name of a tenant's token and is of no tenant.
PLATFORMS_OWN = ["judging.Judge"]


def test_every_model_with_a_tenant_is_of_the_kind() -> None:
    """A column for the tenant, or a row that is itself a tenant's, makes a row a tenant's."""
    forgotten = [
        model._meta.label
        for model in apps.get_models(include_auto_created=True)
        if not issubclass(model, TenantRows)
        and not model._meta.auto_created
        and any(
            field.name in ("tenant", "tenant_id")
            or (
                isinstance(field.related_model, type)
                and issubclass(field.related_model, TenantRows)
            )
            for field in model._meta.concrete_fields
        )
    ]
    assert forgotten == PLATFORMS_OWN
    assert {model._meta.label for model in OWNED} >= {
        "audit.AuditEvent", "batches.Batch", "batches.BatchItem", "batches.UploadedFile",
        "feedback.MetricEvent", "judging.AnswerSample",
        "gateway.IdempotentRequest", "metering.Meter", "metering.UsageRecord",
        "metering.RefusalRollup", "metering.UsageRollup", "rbac.ApiToken", "rbac.GroupMapping",
        "rbac.RoleGrant", "rbac.TokenFamily",
        "tenants.EndUser", "tenants.Membership",
    }  # fmt: skip


QUERIES: dict[str, Callable[[Any], Any]] = {
    "all": lambda rows: list(rows.all()),
    "filter": lambda rows: list(rows.filter(pk=1)),
    "either": lambda rows: list(rows.filter(Q(pk=1) | Q(pk=2))),
    "get": lambda rows: rows.get(pk=1),
    "first": lambda rows: rows.first(),
    "values": lambda rows: list(rows.values_list("pk")),
    "count": lambda rows: rows.count(),
    "exists": lambda rows: rows.exists(),
    "aggregate": lambda rows: rows.aggregate(n=Count("pk")),
    "in_bulk": lambda rows: rows.in_bulk([1]),
    "iterator": lambda rows: list(rows.iterator()),
    "slice": lambda rows: list(rows.order_by("pk")[:1]),
    "update": lambda rows: rows.update(id=1),
    "delete": lambda rows: rows.filter(pk=1).delete(),
    "raw delete": lambda rows: rows.all()._raw_delete("default"),
    "lock": lambda rows: rows.select_for_update().filter(pk=1).first(),
    "in another": lambda rows: list(Tenant.objects.filter(pk__in=rows.values("pk"))),
    "exists in another": lambda rows: list(Tenant.objects.filter(Exists(rows.all()))),
    "union": lambda rows: list(rows.values("pk").union(Tenant.objects.values("pk"))),
}


@pytest.mark.parametrize("model", OWNED, ids=lambda model: model._meta.label)
@pytest.mark.parametrize("query", QUERIES)
def test_a_query_that_names_nobody_does_not_run(
    query: str, model: type[TenantRows], django_assert_num_queries: Any
) -> None:
    with pytest.raises(TenantNotSaid, match=model._meta.label), django_assert_num_queries(0):
        QUERIES[query](model.objects)


@pytest.mark.parametrize("query", ["all", "count", "exists", "lock", "update", "delete"])
def test_it_runs_for_everybody_where_that_is_said(query: str) -> None:
    for model in (UsageRecord, Meter):
        with every_tenant("a test"):
            QUERIES[query](model.objects)
        with pytest.raises(TenantNotSaid), transaction.atomic():  # and no longer than that
            QUERIES[query](model.objects)


def test_an_error_ends_it_too() -> None:
    @every_tenant("a test")
    def broken() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        broken()
    with pytest.raises(TenantNotSaid):
        UsageRecord.objects.count()


def test_a_condition_on_the_tenant_names_whose() -> None:
    one, other = TenantFactory(), TenantFactory()
    mine, _ = EndUserFactory(tenant=one), EndUserFactory(tenant=other)
    rows = EndUser.objects
    for query in (
        rows.filter(tenant=one), rows.filter(tenant_id=one.pk), rows.filter(tenant_id__in=[one.pk]),
        rows.filter(Q(tenant=one) & Q(identifier=mine.identifier)), rows.of_tenants([one.pk]),
        one.end_users.all(),
    ):  # fmt: skip
        assert list(query) == [mine]
    assert set(rows.of_tenants(None)) == set(all_of(EndUser))
    assert list(rows.of_tenants([])) == list(rows.none()) == []


@pytest.mark.parametrize(
    "condition",
    [
        Q(tenant=1) | Q(identifier="ann"),
        ~Q(tenant=1),
        Q(tenant__isnull=False),
        Q(tenant_id__gt=0),
        Q(tenant__name="Acme"),
    ],
    ids=str,
)
def test_what_does_not_bind_every_row_to_a_tenant_names_nobody(condition: Q) -> None:
    with pytest.raises(TenantNotSaid):
        EndUser.objects.filter(condition).exists()


def test_rows_of_a_tenants_row_are_that_tenants() -> None:
    membership, token = MembershipFactory(role="developer"), ApiTokenFactory()
    assert membership.role_grants.count() == 1
    assert RoleGrant.objects.filter(membership__tenant=membership.tenant).count() == 1
    assert token.families.count() == TokenFamily.objects.filter(api_token=token).count() == 0
    assert not BatchItem.objects.filter(batch_id=1).exists()
    shown = list(Membership.objects.of_tenants(None).prefetch_related("role_grants__role"))
    assert [grant.role.slug for row in shown for grant in row.role_grants.all()] == ["developer"]
    with pytest.raises(TenantNotSaid):  # somebody's memberships may be in many tenants
        membership.user.memberships.exists()
    tenants = Tenant.objects.filter(Exists(ApiToken.objects.filter(tenant=OuterRef("pk"))))
    assert list(tenants) == [token.tenant]


def test_what_django_does_by_itself_goes_on() -> None:
    token = ApiTokenFactory()
    token.full_clean()
    token.save()
    token.refresh_from_db()
    assert token.tenant.pk == Tenant.objects.get(pk=token.tenant_id).pk
    token.name = "other"
    ApiToken.objects.filter(tenant=token.tenant_id).update(name="third")
    token.delete()
    assert not all_of(ApiToken).exists()
    AuditEvent(actor_kind="system", action="test.done").save()
