"""The access review tells what the checks do."""

import csv
import io
import json
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apps.rbac.models import Role, RoleGrant, User
from apps.rbac.permissions import TENANT_PERMISSIONS
from apps.rbac.review import access_review
from apps.rbac.types import USE_ROUTE
from apps.routing.models import RouteUserObjectPermission
from tests.factories import (
    ApiTokenFactory,
    MembershipFactory,
    RouteFactory,
    TenantFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db


def reasons(permission: str, **filters: str) -> list[tuple[str, str, str, bool]]:
    return [
        (each.subject, each.where, each.why, each.is_effective)
        for each in access_review(**filters)
        if each.permission in (permission, "*")
    ]


def test_every_reason_is_told() -> None:
    tenant = TenantFactory(slug="acme")
    UserFactory(username="root", admin=True)
    ann = UserFactory(username="ann")
    ann.user_permissions.add(Permission.objects.get(codename="use_route"))
    RoleGrant.objects.create(role=Role.objects.get(slug="operator"), user=ann, granted_by=ann)
    bob = MembershipFactory(user__username="bob", tenant=tenant)
    MembershipFactory(user__username="cy", tenant=tenant, role="viewer")
    MembershipFactory(user__username="off", user__is_active=False, tenant=tenant)
    RouteUserObjectPermission.objects.create(
        user=User.objects.get(username="cy"),
        permission=Permission.objects.get(codename="use_route"),
        content_object=RouteFactory(name="secret"),
    )
    own = ApiTokenFactory(name="own", tenant=tenant)
    lent = ApiTokenFactory(name="lent", tenant=tenant, owner=bob.user)
    dead = ApiTokenFactory(name="dead", tenant=tenant, owner=User.objects.get(username="cy"))
    assert reasons(USE_ROUTE) == [
        ("ann", "everywhere", "given directly", True),
        ("root", "everywhere", "superuser", True),
        ("ann", "everywhere", "role Operator, given by ann", True),
        ("bob", "tenant:acme", "role Developer as a member", True),
        ("off", "tenant:acme", "role Developer as a member", False),
        ("cy", "route:secret", "given on this object", True),
        (str(own), "tenant:acme", "the tenant's own token", True),
        (str(lent), "tenant:acme", "token of bob", True),
        (str(dead), "tenant:acme", "token of cy", False),
    ]
    assert [each[0] for each in reasons(USE_ROUTE, username="bob")] == ["bob", str(lent)]
    assert {each[0] for each in reasons(USE_ROUTE, tenant_slug="acme")} == {
        "bob", "off", "cy", str(own), str(lent), str(dead),
    }  # fmt: skip


def test_a_token_that_is_somebodys_whole_power_is_told() -> None:
    bob = MembershipFactory(user__username="bob")
    token = ApiTokenFactory(tenant=bob.tenant, owner=bob.user, scopes=["manage"])
    ApiTokenFactory(tenant=bob.tenant, scopes=["manage"])  # nobody's, and good for nothing
    told = (str(token), "everywhere", "token of bob, for whatever they may", True)
    assert reasons("manage") == [told]
    User.objects.update(is_active=False)
    assert reasons("manage") == [(*told[:3], False)]


def test_it_says_what_the_checks_say() -> None:
    members = [MembershipFactory(role=role.slug) for role in Role.objects.all()]
    told: dict[int, set[str]] = {row.user_id: set() for row in members}
    for row in members:
        told[row.user_id] = {each.permission for each in access_review(username=row.user.username)}
    for row in members:
        access = User.objects.get(pk=row.user_id).access
        may = {name for name in TENANT_PERMISSIONS if access.may(name, tenant_id=row.tenant_id)}
        assert told[row.user_id] == may


def test_its_queries_do_not_grow() -> None:
    counts = []
    for _ in range(2):
        for _ in range(4):
            row = MembershipFactory()
            ApiTokenFactory(tenant=row.tenant, owner=row.user)
        with CaptureQueriesContext(connection) as queries:
            list(access_review())
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_as_csv_and_as_json() -> None:
    MembershipFactory(user__username="bob", tenant__slug="acme", role="viewer")
    text, data = io.StringIO(), io.StringIO()
    call_command("access_review", stdout=text)
    call_command("access_review", "--user", "bob", "--format", "json", stdout=data)
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text.getvalue())))
    entries = json.loads(data.getvalue())
    assert [row["permission"] for row in rows] == [entry["permission"] for entry in entries]
    assert entries[0] == {
        "kind": "person",
        "subject": "bob",
        "permission": "batches.view_batch",
        "where": "tenant:acme",
        "why": "role Viewer as a member",
        "is_effective": True,
    }
