"""The page of the access review, and its file."""

import csv
import io

import pytest
from django.test import Client
from django.urls import reverse

from apps.rbac.models import Role, RoleGrant
from tests.factories import ApiTokenFactory, MembershipFactory, UserFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def people() -> None:
    ann = MembershipFactory(user__username="ann", tenant__slug="acme", role="developer")
    MembershipFactory(user__username="bob", tenant__slug="bolt", role="viewer")
    ApiTokenFactory(name="=cmd()", tenant=ann.tenant, owner=ann.user)


def signed_in(role: str, *, everywhere: bool = True) -> Client:
    user = UserFactory(is_staff=True)
    row = Role.objects.get(slug=role)
    if everywhere:
        RoleGrant.objects.create(role=row, user=user)
    else:
        MembershipFactory(user=user, role=role)
    client = Client()
    client.force_login(user)
    return client


@pytest.mark.parametrize("role", ["owner", "admin", "auditor"])
def test_who_may_see_everyone_sees_it(role: str, people: None) -> None:
    page = signed_in(role).get(reverse("admin:access_review"), {"permission": "use_route"})
    assert page.status_code == 200
    subjects = [entry.subject for entry in page.context["entries"]]
    assert "ann" in subjects
    assert "bob" not in subjects


@pytest.mark.parametrize(
    ("role", "everywhere"), [("operator", True), ("viewer", True), ("owner", False)]
)
def test_who_may_not_sees_nothing(role: str, everywhere: bool, people: None) -> None:
    client = signed_in(role, everywhere=everywhere)
    for name in ("access_review", "access_review_csv"):
        answer = client.get(reverse(f"admin:{name}"))
        assert answer.status_code == 403
        assert b"ann" not in answer.content.replace(b"standard", b"")


def test_of_one_tenant_as_a_file(admin_client: Client, people: None) -> None:
    answer = admin_client.get(reverse("admin:access_review_csv"), {"tenant": "acme"})
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.content.decode())))
    assert {row["subject"] for row in rows} == {"ann", "'=cmd() (sk-nano-000000…)"}
    assert {row["where"] for row in rows} == {"tenant:acme"}


def test_a_superuser_answers_every_question(admin_client: Client, people: None) -> None:
    page = admin_client.get(reverse("admin:access_review"), {"permission": "change_plan"})
    assert [(each.subject, each.permission) for each in page.context["entries"]] == [("admin", "*")]


def test_a_name_that_nobody_has(admin_client: Client, people: None) -> None:
    page = admin_client.get(reverse("admin:access_review"), {"user": "zoe"})
    assert "Nobody may do this." in page.content.decode()
