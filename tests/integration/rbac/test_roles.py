"""Roles: what they give, and that nobody hands on what they do not have."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db.models import ProtectedError

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.exceptions import Conflict, InvalidRequest, PermissionDenied
from apps.deployments.models import Deployment, DeploymentUserObjectPermission
from apps.rbac.models import Role, RoleGrant, User
from apps.rbac.permissions import TENANT_PERMISSIONS, access_of, holders_of
from apps.rbac.services import (
    member_add,
    member_remove,
    object_permissions_change,
    role_delete,
    role_grant,
    role_grant_remove,
    role_save,
    roles_seed,
    service_account_create,
)
from apps.rbac.types import USE_ROUTE
from apps.tenants.models import Membership
from tests.factories import (
    DeploymentFactory,
    MembershipFactory,
    RoleFactory,
    TenantFactory,
    UserFactory,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db


def role(slug: str) -> Role:
    return Role.objects.get(slug=slug)


def everywhere(slug: str) -> User:
    """Somebody with a role everywhere."""
    user: User = UserFactory(is_staff=True)
    RoleGrant.objects.create(role=role(slug), user=user)
    return user


def names(row: Role) -> set[str]:
    pairs = row.permissions.values_list("content_type__app_label", "codename")
    return {f"{label}.{codename}" for label, codename in pairs}


def events() -> list[str]:
    return list(all_of(AuditEvent).order_by("id").values_list("action", flat=True))


def test_the_roles_that_come_with_the_platform() -> None:
    held = {slug: names(role(slug)) for slug in Role.objects.values_list("slug", flat=True)}
    assert set(held) == {"owner", "admin", "operator", "developer", "auditor", "viewer"}
    assert held["owner"] > held["admin"] > held["developer"]
    assert held["owner"] - held["admin"] == {
        f"{app}.{verb}_{model}"
        for app, model in (("rbac", "role"), ("tenants", "plan"))
        for verb in ("add", "change", "delete")
    }
    assert held["auditor"] == {name for name in held["owner"] if ".view_" in name}
    assert held["viewer"] < held["auditor"]
    assert USE_ROUTE in held["operator"] & held["developer"]
    assert USE_ROUTE not in held["viewer"] | held["auditor"]
    assert not {name for name in held["operator"] if name.startswith(("rbac.", "audit."))}
    assert held["owner"] >= TENANT_PERMISSIONS


def test_seeding_again_changes_nothing_and_leaves_own_roles() -> None:
    own = RoleFactory()
    before = list(Role.permissions.through.objects.order_by("id").values_list("id", flat=True))
    member = MembershipFactory(role=None)
    roles_seed()
    after = list(Role.permissions.through.objects.order_by("id").values_list("id", flat=True))
    assert before == after
    assert Role.objects.filter(pk=own.pk).exists()
    assert not member.role_grants.exists()


def test_members_from_before_there_were_roles_may_do_what_they_could() -> None:
    Role.objects.all().delete()
    member = MembershipFactory(role=None)
    roles_seed()
    assert access_of(member.user).may(USE_ROUTE, tenant_id=member.tenant_id)


def test_a_role_in_a_tenant_is_good_there_and_gives_nothing_of_the_platform() -> None:
    member = MembershipFactory(role="owner")
    other = TenantFactory()
    user = User.objects.get(pk=member.user_id)
    assert user.access.tenants == {member.tenant_id: TENANT_PERMISSIONS}
    assert user.access.platform == frozenset()
    assert user.has_perm("tenants.view_tenant", member.tenant)
    assert not user.has_perm("tenants.view_tenant", other)
    assert not user.has_perm("tenants.view_tenant")
    assert not user.has_perm("tenants.change_tenant", member.tenant)
    assert user.access.tenants_where("rbac.view_apitoken") == {member.tenant_id}


@pytest.mark.parametrize("off", ["user", "tenant"])
def test_who_or_what_is_switched_off_gives_nothing(off: str) -> None:
    member = MembershipFactory(role="owner", **{f"{off}__is_active": False})
    user = User.objects.get(pk=member.user_id)
    assert not user.has_perm("tenants.view_tenant", member.tenant)
    assert not holders_of(USE_ROUTE, [user.pk]).include(user.pk, tenant_id=member.tenant_id)


def test_access_is_read_in_two_queries(django_assert_num_queries: Any) -> None:
    member = MembershipFactory(role="developer")
    RoleGrant.objects.create(role=role("auditor"), user=member.user)
    user = User.objects.get(pk=member.user_id)
    with django_assert_num_queries(2):
        assert user.has_perm("audit.view_auditevent")
        assert user.has_module_perms("audit")
        assert user.access.may(USE_ROUTE, tenant_id=member.tenant_id)
        assert not user.access.may(USE_ROUTE)


def test_holders_are_those_whose_access_says_so(django_assert_num_queries: Any) -> None:
    direct: User = UserFactory()
    direct.user_permissions.add(Permission.objects.get(codename="use_route"))
    people = [
        UserFactory(), UserFactory(admin=True), UserFactory(admin=True, is_active=False), direct,
        everywhere("operator"), everywhere("viewer"),
        *(MembershipFactory(role=slug).user for slug in ("developer", "viewer", None)),
    ]  # fmt: skip
    tenant_ids = [
        row.tenant_id
        for row in (all_of(Membership).filter(user=each).first() for each in people)
        if row
    ]
    with django_assert_num_queries(2):
        holders = holders_of(USE_ROUTE, [each.pk for each in people])
    for each in people:
        for tenant_id in (*tenant_ids, 10**6):
            access = access_of(User.objects.get(pk=each.pk))
            said = holders.include(each.pk, tenant_id=tenant_id)
            assert said == access.may(USE_ROUTE, tenant_id=tenant_id)


def test_somebody_gives_and_takes_what_they_have(actor: Actor) -> None:
    boss, member = MembershipFactory(role="owner"), MembershipFactory(role=None)
    member.tenant = boss.tenant
    member.save()
    grant = role_grant(role=role("admin"), membership=member, by=boss.user, actor=actor)
    assert (grant.granted_by, grant.tenant_id) == (boss.user, boss.tenant_id)
    role_grant_remove(grant=grant, by=boss.user, actor=actor)
    assert not member.role_grants.exists()
    assert events() == ["role.granted", "role.withdrawn"]


@pytest.mark.parametrize("slug", ["developer", "viewer", "auditor", "operator"])
def test_who_may_give_no_roles_gives_none(slug: str, actor: Actor) -> None:
    by, member = MembershipFactory(role=slug), MembershipFactory(role=None)
    for target in ({"user": by.user}, {"membership": by}, {"membership": member}):
        with pytest.raises(PermissionDenied):
            role_grant(role=role("viewer"), by=by.user, actor=actor, **target)
    assert all_of(RoleGrant).count() == 1
    assert events() == []


def test_nobody_raises_themselves_or_reaches_into_another_tenant(actor: Actor) -> None:
    admin, elsewhere = MembershipFactory(role="admin"), MembershipFactory(role=None)
    attempts: list[dict[str, Any]] = [
        {"role": role("owner"), "user": admin.user},  # everywhere
        {"role": role("viewer"), "user": admin.user},
        {"role": role("viewer"), "membership": elsewhere},
    ]
    platform_admin = everywhere("admin")
    for by, attempt in [
        *((admin.user, each) for each in attempts),
        (platform_admin, {"role": role("owner"), "user": platform_admin}),
    ]:
        with pytest.raises(PermissionDenied):
            role_grant(by=by, actor=actor, **attempt)
    assert all_of(RoleGrant).count() == 2
    assert events() == []


def test_an_admin_cannot_take_the_owner_s_role(actor: Actor) -> None:
    grant = all_of(RoleGrant).get(user=everywhere("owner"))
    with pytest.raises(PermissionDenied) as refusal:
        role_grant_remove(grant=grant, by=everywhere("admin"), actor=actor)
    assert refusal.value.message == (
        "You do not have this yourself: rbac.add_role, rbac.change_role, rbac.delete_role "
        "and 3 more."
    )
    assert all_of(RoleGrant).filter(pk=grant.pk).exists()


def test_a_role_that_gives_nothing_in_a_tenant_is_refused_there(actor: Actor) -> None:
    own = RoleFactory()
    own.permissions.set(Permission.objects.filter(codename="change_plan"))
    with pytest.raises(InvalidRequest) as refusal:
        role_grant(role=own, membership=MembershipFactory(role=None), by=None, actor=actor)
    assert refusal.value.param == "role"


def test_an_own_role_is_made_changed_and_deleted(actor: Actor) -> None:
    see = Permission.objects.get(codename="view_route")
    change = Permission.objects.get(codename="change_route")
    made = role_save(
        role=Role(name="Router", slug="router"), permissions=[see], by=None, actor=actor
    )
    grant = RoleGrant.objects.create(role=made, user=UserFactory())
    role_save(role=made, permissions=[see, change], by=None, actor=actor)
    assert access_of(grant.holder).may("routing.change_route")
    with pytest.raises(ProtectedError):
        role_delete(role=made, by=None, actor=actor)
    grant.delete()
    role_delete(role=made, by=None, actor=actor)
    assert events() == ["role.created", "role.updated", "role.deleted"]
    event = all_of(AuditEvent).get(action="role.updated")
    assert event.changes == {"permissions": [[], ["routing.change_route"]]}


def test_a_role_of_the_platform_stays_as_it_is(actor: Actor) -> None:
    before = names(role("viewer"))
    with pytest.raises(Conflict):
        role_save(role=role("viewer"), permissions=[], by=None, actor=actor)
    with pytest.raises(Conflict):
        role_delete(role=role("viewer"), by=None, actor=actor)
    assert names(role("viewer")) == before


def test_a_role_cannot_be_made_to_give_more_than_its_maker_has(actor: Actor) -> None:
    by = everywhere("admin")
    for name in ("add_role", "change_role"):
        by.user_permissions.add(Permission.objects.get(codename=name))
    by = User.objects.get(pk=by.pk)
    wanted = Permission.objects.filter(codename__in=["view_route", "change_plan"])
    with pytest.raises(PermissionDenied):
        role_save(role=Role(name="R", slug="r"), permissions=wanted, by=by, actor=actor)
    assert not Role.objects.filter(slug="r").exists()


def test_members_come_and_go_with_their_roles(actor: Actor) -> None:
    boss, user = MembershipFactory(role="owner"), UserFactory()
    member = member_add(
        tenant=boss.tenant, user=user, role=role("developer"), by=boss.user, actor=actor
    )
    assert access_of(user).may(USE_ROUTE, tenant_id=boss.tenant_id)
    with pytest.raises(PermissionDenied):
        member_remove(membership=member, by=user, actor=actor)
    member_remove(membership=member, by=boss.user, actor=actor)
    assert access_of(user).tenants == {}
    assert events() == ["membership.added", "role.granted", "role.withdrawn", "membership.removed"]


def test_a_service_account_has_a_role_and_cannot_sign_in(actor: Actor) -> None:
    boss = MembershipFactory(role="admin")
    account = service_account_create(
        tenant=boss.tenant, name="ci-bot", role=role("developer"), by=boss.user, actor=actor
    )
    assert (account.is_service, account.is_staff, account.has_usable_password()) == (
        True, False, False,
    )  # fmt: skip
    assert access_of(account).may(USE_ROUTE, tenant_id=boss.tenant_id)
    with pytest.raises(PermissionDenied):
        service_account_create(
            tenant=TenantFactory(), name="spy", role=role("viewer"), by=boss.user, actor=actor
        )
    assert not User.objects.filter(username="spy").exists()


def object_grant(user: User, codename: str, deployment: Deployment) -> Any:
    permission = Permission.objects.get(codename=codename)
    return DeploymentUserObjectPermission(
        user=user, permission=permission, content_object=deployment
    )


def test_a_permission_on_one_object_goes_with_the_object(actor: Actor) -> None:
    ann, mine, other = UserFactory(), DeploymentFactory(), DeploymentFactory()
    grant = object_grant(ann, "change_deployment", mine)
    object_permissions_change(obj=mine, added=[grant], by=everywhere("admin"), actor=actor)
    ann = User.objects.get(pk=ann.pk)
    assert ann.has_perm("deployments.change_deployment", mine)
    assert not ann.has_perm("deployments.change_deployment", other)
    assert not ann.has_perm("deployments.change_deployment")
    mine.delete()
    assert not DeploymentUserObjectPermission.objects.exists()
    assert events() == ["object_permission.granted"]


def test_a_permission_on_one_object_is_given_by_who_has_it(actor: Actor) -> None:
    deployment = DeploymentFactory()
    grant = object_grant(UserFactory(), "change_deployment", deployment)
    for by in (everywhere("operator"), MembershipFactory(role="owner").user):
        with pytest.raises(PermissionDenied):
            object_permissions_change(obj=deployment, added=[grant], by=by, actor=actor)
    assert not DeploymentUserObjectPermission.objects.exists()
    assert events() == []
