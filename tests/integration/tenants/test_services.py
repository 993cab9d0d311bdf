import pytest
from django.core.exceptions import ValidationError

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.selectors import change_stamps
from apps.tenants.models import Membership, Tenant
from apps.tenants.selectors import tenant_names, tenant_of_user
from apps.tenants.services import (
    membership_add,
    membership_remove,
    tenant_create,
    tenant_update,
)
from tests.factories import MembershipFactory, TenantFactory, UserFactory

pytestmark = pytest.mark.django_db


def test_create_writes_tenant_salt_and_event(actor: Actor) -> None:
    tenant = tenant_create(name="Acme", slug="acme", actor=actor)
    other = tenant_create(name="Bolt", slug="bolt", actor=actor)
    assert len(bytes.fromhex(tenant.cache_salt)) == 32
    assert tenant.cache_salt != other.cache_salt
    event = AuditEvent.objects.get(object_id=str(tenant.pk))
    assert (event.action, event.actor_label, event.actor_id) == ("tenant.created", "alice", 7)
    assert (event.ip_address, event.tenant_id) == ("192.0.2.7", tenant.pk)
    assert event.changes == {"name": "Acme", "slug": "acme", "is_active": True}


def test_create_refuses_a_taken_slug_and_writes_nothing(actor: Actor) -> None:
    TenantFactory(slug="acme")
    with pytest.raises(ValidationError) as refusal:
        tenant_create(name="Acme", slug="acme", actor=actor)
    assert list(refusal.value.message_dict) == ["slug"]
    assert Tenant.objects.count() == 1
    assert not AuditEvent.objects.exists()


def test_update_records_what_changed_and_moves_the_stamp(actor: Actor) -> None:
    tenant = TenantFactory(name="Acme")
    tenant.is_active = False
    tenant_update(tenant=tenant, actor=actor)
    assert not Tenant.objects.get(pk=tenant.pk).is_active
    event = AuditEvent.objects.get()
    assert (event.action, event.changes) == ("tenant.updated", {"is_active": [True, False]})
    assert change_stamps() == {"access": 1}


def test_update_without_a_change_writes_nothing(actor: Actor) -> None:
    tenant_update(tenant=TenantFactory(), actor=actor)
    assert not AuditEvent.objects.exists()
    assert change_stamps() == {}


def test_a_failing_update_leaves_row_event_and_stamp_alone(actor: Actor) -> None:
    tenant = TenantFactory(name="Acme")
    tenant.name = ""
    with pytest.raises(ValidationError):
        tenant_update(tenant=tenant, actor=actor)
    assert Tenant.objects.get(pk=tenant.pk).name == "Acme"
    assert not AuditEvent.objects.exists()
    assert change_stamps() == {}


def test_membership_is_added_once_and_removed(actor: Actor) -> None:
    tenant, user = TenantFactory(), UserFactory(username="bob")
    membership = membership_add(tenant=tenant, user=user, actor=actor)
    with pytest.raises(ValidationError):
        membership_add(tenant=tenant, user=user, actor=actor)
    assert Membership.objects.count() == 1
    membership_remove(membership=membership, actor=actor)
    assert not Membership.objects.exists()
    events = list(AuditEvent.objects.order_by("id").values_list("action", "changes"))
    assert events == [
        ("membership.added", {"user": "bob"}),
        ("membership.removed", {"user": "bob"}),
    ]
    assert change_stamps() == {"access": 2}


def test_tenant_of_user_is_the_first_active_one() -> None:
    user = UserFactory()
    assert tenant_of_user(user) is None
    MembershipFactory(user=user, tenant__is_active=False)
    second = MembershipFactory(user=user, tenant__name="Zeta").tenant
    MembershipFactory(user=user, tenant__name="Alpha")
    assert tenant_of_user(user) == second


def test_tenant_names_leave_out_what_is_gone() -> None:
    tenant = TenantFactory(name="Acme")
    assert tenant_names({tenant.pk, tenant.pk + 1}) == {tenant.pk: "Acme"}
