"""Whatever somebody writes into the address of a page of the admin, it is answered, and never by a
fault of ours. The pages are those that exist."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from tests.integration.isolation.test_admin import things
from tests.integration.isolation.urls import walk

__all__ = ["things"]

pytestmark = pytest.mark.django_db

NO_KEYS = ["0", "9" * 30, "x", "1%00", "_5F"]
# What PostgreSQL takes in no text, and no database as a number.
JUNK = ["\0", "9" * 30]
# What the pages themselves put into their addresses, all in one question and each by itself.
NAMES = [
    "q", "p", "o", "tenant", "plan", "token", "first", "route", "page", "user", "permission",
    "id__exact", "state", "object_type", "object_id", "tenant_id", "actor_id", "action", "term",
    "version", "import", "deployment", "share", "model",
]  # fmt: skip


def lists() -> Iterator[str]:
    for route, pattern in walk("config.urls"):
        is_list = route.startswith("admin/") and not set("<(") & set(route)
        if is_list and pattern.name not in ("logout", "jsi18n"):
            yield f"/{route}"


def test_no_key_of_a_thing_is_a_fault(admin_client: Client, things: object) -> None:
    admin_client.raise_request_exception = False
    for model in admin.site._registry:
        opts: Any = model._meta
        url = reverse(f"admin:{opts.app_label}_{opts.model_name}_change", args=["KEY"])
        for key in NO_KEYS:
            for page in ("change", "delete", "history"):
                address = url.replace("KEY", key).replace("change", page)
                assert admin_client.get(address).status_code in (302, 403, 404), address
    for key in NO_KEYS:
        assert admin_client.get(f"/admin/requests/{key}/").status_code == 404, key


@pytest.mark.parametrize("junk", JUNK)
def test_no_question_is_a_fault(admin_client: Client, things: object, junk: str) -> None:
    admin_client.raise_request_exception = False
    for page in sorted(set(lists())):
        assert admin_client.get(page, dict.fromkeys(NAMES, junk)).status_code < 500, page
    for page in ("audit/auditevent", "metering/usagerecord", "metering/usagerecord/usage"):
        for name in NAMES:
            status = admin_client.get(f"/admin/{page}/", {name: junk}).status_code
            assert status < 500, (page, name)
