"""What a list does not show cannot be asked of it either: a filter that says yes or no to the
beginning of a secret tells the secret. The lists are those that exist."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.db.models import Model
from django.test import Client
from django.urls import reverse

from tests.factories import FailedSignInFactory, UserFactory

pytestmark = pytest.mark.django_db

# Of any table that has such a column.
SECRET = {"password", "digest", "cache_salt", "private_sealed", "refresh_jti", "key"}
# Of a request, and its page shows it: nobody gets in by it.
SHOWN = {("QuarantinedRequest", "digest")}


def lists() -> Iterator[tuple[type[Model], str]]:
    for model in admin.site._registry:
        opts: Any = model._meta
        yield model, reverse(f"admin:{opts.app_label}_{opts.model_name}_changelist")


def test_no_list_is_filtered_by_a_secret(admin_client: Client) -> None:
    tried = set()
    for model, url in lists():
        for name in SECRET & {field.name for field in model._meta.get_fields()}:
            if (model.__name__, name) in SHOWN:
                continue
            tried.add((model.__name__, name))
            for lookup in (f"{name}__startswith", f"{name}__gt", name):
                assert admin_client.get(url, {lookup: "a"}).status_code == 400, (model, lookup)
    assert tried >= {
        ("Person", "password"), ("User", "password"), ("ApiToken", "digest"),
        ("Tenant", "cache_salt"),
    }  # fmt: skip


def test_no_list_is_filtered_by_a_secret_of_what_a_row_leads_to(admin_client: Client) -> None:
    for page, lookup in (
        ("rbac_apitoken", "owner__password__startswith"),
        ("tenants_membership", "user__password__startswith"),
        ("tenants_membership", "tenant__cache_salt__startswith"),
        ("batches_batch", "tenant__cache_salt__startswith"),
    ):
        url = reverse(f"admin:{page}_changelist")
        assert admin_client.get(url, {lookup: "a"}).status_code == 400, lookup


def test_a_list_is_filtered_by_what_it_shows(admin_client: Client) -> None:
    ann = UserFactory(username="ann", is_staff=False)
    url = reverse("admin:sign_in_person_changelist")
    assert "ann" in admin_client.get(url, {"username__startswith": "an"}).content.decode()
    assert admin_client.get(url, {"id__exact": ann.pk}).status_code == 200


def test_a_name_that_nobody_has_is_not_guessed_by_searching(admin_client: Client) -> None:
    """People type their password where the name belongs."""
    FailedSignInFactory(username="my secret horse", ip_address="192.0.2.7")
    UserFactory(username="ann")
    FailedSignInFactory(username="ann", ip_address="192.0.2.8")
    url = reverse("admin:sign_in_failedsignin_changelist")

    def found(**query: str) -> list[str]:
        response = admin_client.get(url, query)
        if response.status_code != 200:
            return []
        return [row.ip_address for row in response.context["cl"].result_list]

    assert found(q="my secret") == found(q="zz") == []
    assert found(username__startswith="my") == []
    assert found(q="192.0.2.7") == ["192.0.2.7"]
    assert found(q="ann") == ["192.0.2.8"]
