import pytest
from django.core.exceptions import ValidationError

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.limits import Limits
from apps.core.selectors import change_stamps
from apps.tenants.models import Membership, Plan, Tenant
from apps.tenants.selectors import (
    end_user_limits,
    is_judging_allowed,
    tenant_limits,
    tenant_names,
    tenant_of_user,
    tenants_allowing_judging,
)
from apps.tenants.services import (
    membership_add,
    membership_remove,
    plan_save,
    plans_seed,
    tenant_create,
    tenant_update,
)
from tests.factories import (
    EndUserFactory,
    MembershipFactory,
    PlanFactory,
    TenantFactory,
    UserFactory,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db


def test_create_writes_tenant_salt_and_event(actor: Actor) -> None:
    plan = PlanFactory(name="Team")
    tenant = tenant_create(name="Acme", slug="acme", plan=plan, actor=actor, tokens_per_day=9)
    other = tenant_create(name="Bolt", slug="bolt", plan=plan, actor=actor)
    assert len(bytes.fromhex(tenant.cache_salt)) == 32
    assert tenant.cache_salt != other.cache_salt
    event = all_of(AuditEvent).get(object_id=str(tenant.pk))
    assert (event.action, event.actor_label, event.actor_id) == ("tenant.created", "alice", 7)
    assert (event.ip_address, event.tenant_id) == ("192.0.2.7", tenant.pk)
    assert event.changes == {
        "name": ["", "Acme"],
        "slug": ["", "acme"],
        "plan": [None, plan.pk],
        "tokens_per_day": [None, 9],
    }


def test_create_refuses_a_taken_slug_and_writes_nothing(actor: Actor) -> None:
    TenantFactory(slug="acme")
    with pytest.raises(ValidationError) as refusal:
        tenant_create(name="Acme", slug="acme", plan=PlanFactory(), actor=actor)
    assert list(refusal.value.message_dict) == ["slug"]
    assert Tenant.objects.count() == 1
    assert not all_of(AuditEvent).exists()


def test_update_records_what_changed_and_moves_the_stamp(actor: Actor) -> None:
    tenant = TenantFactory(name="Acme")
    tenant.is_active = False
    tenant_update(tenant=tenant, actor=actor)
    assert not Tenant.objects.get(pk=tenant.pk).is_active
    event = all_of(AuditEvent).get()
    assert (event.action, event.changes) == ("tenant.updated", {"is_active": [True, False]})
    assert change_stamps() == {"access": 1}


def test_who_lets_answers_be_judged_is_in_the_audit_trail(actor: Actor) -> None:
    tenant = TenantFactory(slug="acme")
    assert (tenant.allows_judging, is_judging_allowed([])) == (False, False)
    for before, after in ((False, True), (True, False)):
        tenant.allows_judging = after
        tenant_update(tenant=tenant, actor=actor)
        event = all_of(AuditEvent).latest("pk")
        assert event.changes == {"allows_judging": [before, after]}
        assert event.tenant_id == tenant.pk
        assert is_judging_allowed([]) == is_judging_allowed(["acme", "x"]) == after
        assert not is_judging_allowed(["x"])
        assert tenants_allowing_judging({tenant.pk, 987654}) == ({tenant.pk} if after else set())
    assert change_stamps() == {"access": 2}
    tenant.allows_judging, tenant.is_active = True, False
    tenant_update(tenant=tenant, actor=actor)
    assert not is_judging_allowed([])
    assert tenants_allowing_judging({tenant.pk}) == set()


def test_update_without_a_change_writes_nothing(actor: Actor) -> None:
    tenant_update(tenant=TenantFactory(), actor=actor)
    assert not all_of(AuditEvent).exists()
    assert change_stamps() == {}


def test_a_failing_update_leaves_row_event_and_stamp_alone(actor: Actor) -> None:
    tenant = TenantFactory(name="Acme")
    tenant.name = ""
    with pytest.raises(ValidationError):
        tenant_update(tenant=tenant, actor=actor)
    assert Tenant.objects.get(pk=tenant.pk).name == "Acme"
    assert not all_of(AuditEvent).exists()
    assert change_stamps() == {}


def test_membership_is_added_once_and_removed(actor: Actor) -> None:
    tenant, user = TenantFactory(), UserFactory(username="bob")
    membership = membership_add(tenant=tenant, user=user, actor=actor)
    with pytest.raises(ValidationError):
        membership_add(tenant=tenant, user=user, actor=actor)
    assert all_of(Membership).count() == 1
    membership_remove(membership=membership, actor=actor)
    assert not all_of(Membership).exists()
    events = list(all_of(AuditEvent).order_by("id").values_list("action", "changes"))
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


def test_a_plan_is_made_changed_and_felt(actor: Actor) -> None:
    plan = plan_save(plan=Plan(name="Team", slug="team", tokens_per_day=10), actor=actor)
    plan.tokens_per_day = 20
    plan_save(plan=plan, actor=actor)
    plan_save(plan=plan, actor=actor)
    assert list(all_of(AuditEvent).order_by("id").values_list("action", flat=True)) == [
        "plan.created",
        "plan.updated",
    ]
    assert change_stamps() == {"access": 2}


def test_a_plan_that_is_wrong_changes_nothing(actor: Actor) -> None:
    plan = PlanFactory()
    plan.weight = 0.0
    with pytest.raises(ValidationError) as refusal:
        plan_save(plan=plan, actor=actor)
    assert list(refusal.value.message_dict) == ["weight"]
    assert Plan.objects.get(pk=plan.pk).weight == 1.0
    assert not all_of(AuditEvent).exists()


def test_standard_plans_stand_where_nobody_made_any() -> None:
    Plan.objects.all().delete()
    PlanFactory(slug="enterprise", requests_per_minute=7)
    plans_seed()
    found = {
        plan.slug: (plan.requests_per_minute, plan.tokens_per_day) for plan in Plan.objects.all()
    }
    assert found == {"free": (60, 10_000), "pro": (600, 100_000), "enterprise": (7, None)}
    Plan.objects.filter(slug="free").delete()
    plans_seed()
    assert not Plan.objects.filter(slug="free").exists()


def test_limits_of_a_tenant_are_its_own_or_its_plans() -> None:
    plan = PlanFactory(requests_per_minute=60, tokens_per_day=100, allowed_routes="a\nb")
    tenant = TenantFactory(plan=plan, tokens_per_day=7, allowed_routes="")
    assert tenant_limits(tenant) == Limits(
        requests_per_minute=60, tokens_per_day=7, allowed_routes=frozenset("ab")
    )


def test_limits_of_an_end_user_are_their_own_or_everyones() -> None:
    tenant = TenantFactory()
    EndUserFactory(tenant=tenant, identifier="*", tokens_per_day=10, requests_per_minute=5)
    EndUserFactory(tenant=tenant, identifier="ada", tokens_per_day=99)
    EndUserFactory(identifier="bob", tokens_per_day=1)
    ada = end_user_limits(tenant_id=tenant.pk, identifier="ada")
    assert ada == Limits(tokens_per_day=99, requests_per_minute=5)
    bob = end_user_limits(tenant_id=tenant.pk, identifier="bob")
    assert bob == Limits(tokens_per_day=10, requests_per_minute=5)
