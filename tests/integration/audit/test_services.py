from typing import Any

import pytest
from django.db import transaction
from django.test import RequestFactory

from apps.audit.models import AuditEvent
from apps.audit.selectors import actor_of, events_recent
from apps.audit.services import event_record
from apps.audit.types import SYSTEM, Actor
from tests.factories import AuditEventFactory, TenantFactory, UserFactory
from tests.rows import all_of

pytestmark = pytest.mark.django_db


def test_event_says_who_did_what_to_what(actor: Actor) -> None:
    tenant = TenantFactory(name="Acme")
    event = event_record(
        action="tenant.updated",
        actor=actor,
        obj=tenant,
        tenant_id=tenant.pk,
        changes={"name": ["A", "B"]},
    )
    row = all_of(AuditEvent).values().get(pk=event.pk)
    del row["id"], row["at"]
    assert row == {
        "actor_kind": "user",
        "actor_id": 7,
        "actor_label": "alice",
        "ip_address": "192.0.2.7",
        "tenant_id": tenant.pk,
        "action": "tenant.updated",
        "object_type": "tenants.Tenant",
        "object_id": str(tenant.pk),
        "object_label": "Acme",
        "changes": {"name": ["A", "B"]},
    }


def test_event_goes_with_the_transaction_that_fails() -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        event_record(action="tenant.updated", actor=SYSTEM)
        raise ZeroDivisionError
    assert not all_of(AuditEvent).exists()


@pytest.mark.parametrize(
    ("trusted", "seen"), [([], "192.0.2.9"), (["192.0.2.0/24"], "198.51.100.1")]
)
def test_actor_of_a_request_is_its_user_at_the_address_that_the_doors_see(
    trusted: list[str], seen: str, settings: Any
) -> None:
    """Behind a proxy all would have the proxy's; a header of anyone else's is not believed."""
    settings.TRUSTED_PROXIES = trusted
    request = RequestFactory().get(
        "/", REMOTE_ADDR="192.0.2.9", HTTP_X_FORWARDED_FOR="198.51.100.1"
    )
    request.user = UserFactory(username="bob")
    assert actor_of(request) == Actor(kind="user", id=request.user.pk, label="bob", ip_address=seen)


def test_recent_events_come_newest_first() -> None:
    events = [AuditEventFactory() for _ in range(4)]
    assert events_recent(limit=2) == [events[3], events[2]]


@pytest.mark.parametrize(
    ("action", "text"),
    [("api_token.revoked", "API token revoked"), ("tenant.updated", "Tenant updated")],
)
def test_action_text(action: str, text: str) -> None:
    assert AuditEvent(action=action).action_text == text
