"""What groups of the single sign-on provider give: who may say so, and what people have by it."""

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.test import Client

from apps.audit.models import AuditEvent
from apps.audit.types import SYSTEM
from apps.core.exceptions import InvalidRequest, PermissionDenied
from apps.rbac.models import GroupMapping, Role, RoleGrant, User
from apps.rbac.services import (
    group_mapping_add,
    group_mapping_delete,
    mapped_grants_apply,
    role_grant,
)
from apps.tenants.models import Membership
from tests.factories import GroupMappingFactory, MembershipFactory, TenantFactory, UserFactory
from tests.integration.console.pages import actions, messages
from tests.rows import all_of

pytestmark = pytest.mark.django_db

LIST = "/admin/rbac/groupmapping/"


def everywhere(slug: str) -> User:
    user: User = UserFactory(is_staff=True)
    RoleGrant.objects.create(role=Role.objects.get(slug=slug), user=user)
    return User.objects.get(pk=user.pk)


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def draft(role: str, tenant: Any = None) -> GroupMapping:
    return GroupMapping(group="engineers", role=Role.objects.get(slug=role), tenant=tenant)


def held(user: User) -> set[tuple[str, int | None, str | None]]:
    grants = all_of(RoleGrant).filter(user=user) | all_of(RoleGrant).filter(membership__user=user)
    return {
        (grant.role.slug, grant.tenant_id, grant.mapping.group if grant.mapping else None)
        for grant in grants.select_related("role", "mapping", "membership")
    }


def state() -> list[Any]:
    tables: list[Any] = [GroupMapping, RoleGrant, Membership, AuditEvent]
    return [list(all_of(table).order_by("pk").values()) for table in tables]


class TestWhoMayMakeOne:
    @pytest.mark.parametrize(
        ("maker", "role"),
        [("owner", "owner"), ("owner", "admin"), ("admin", "admin"), ("admin", "developer")],
    )
    def test_of_what_they_have_themselves(self, maker: str, role: str) -> None:
        by = everywhere(maker)
        made = group_mapping_add(mapping=draft(role), by=by, actor=SYSTEM)
        assert (made.made_by, str(made)) == (by, f"engineers: {made.role} everywhere")
        assert actions() == ["group_mapping.created"]

    @pytest.mark.parametrize(
        ("maker", "role"),
        [
            ("admin", "owner"), ("operator", "viewer"), ("developer", "developer"),
            ("auditor", "auditor"), ("viewer", "viewer"),
        ],
    )  # fmt: skip
    def test_of_more_or_without_the_right_nobody(self, maker: str, role: str) -> None:
        by, before = everywhere(maker), state()[1:]
        for tenant in (None, TenantFactory()):
            if role == "owner" and tenant is not None:
                continue  # inside a tenant there is nothing that an admin lacks
            with pytest.raises(PermissionDenied):
                group_mapping_add(mapping=draft(role, tenant), by=by, actor=SYSTEM)
        assert not all_of(GroupMapping).exists()
        assert state()[1:] == before

    def test_the_owner_of_a_tenant_lets_nobody_in(self) -> None:
        """A mapping makes accounts: that is the platform's."""
        member = MembershipFactory(role="owner", user__is_staff=True)
        by = User.objects.get(pk=member.user_id)
        with pytest.raises(PermissionDenied):
            group_mapping_add(mapping=draft("viewer", member.tenant), by=by, actor=SYSTEM)
        assert not all_of(GroupMapping).exists()

    def test_of_a_role_that_gives_nothing_there(self) -> None:
        role = Role.objects.create(name="Empty", slug="empty")
        mapping = GroupMapping(group="a", role=role, tenant=TenantFactory())
        with pytest.raises(InvalidRequest):
            group_mapping_add(mapping=mapping, by=None, actor=SYSTEM)

    def test_twice(self) -> None:
        tenant = TenantFactory()
        for where in (None, tenant):
            group_mapping_add(mapping=draft("viewer", where), by=None, actor=SYSTEM)
            with pytest.raises(ValidationError):
                group_mapping_add(mapping=draft("viewer", where), by=None, actor=SYSTEM)
            with pytest.raises(IntegrityError), transaction.atomic():
                GroupMappingFactory(group="engineers", role="viewer", tenant=where)

    def test_nobody_deletes_what_they_could_not_have_made(self) -> None:
        mapping = GroupMappingFactory(role="owner")
        person = UserFactory()
        mapped_grants_apply(user=person, groups=[mapping.group], actor=SYSTEM)
        before = state()
        for slug in ("admin", "auditor"):
            with pytest.raises(PermissionDenied):
                group_mapping_delete(mapping=mapping, by=everywhere(slug), actor=SYSTEM)
            all_of(RoleGrant).filter(mapping=None).delete()
        assert state() == before


class TestWhatPeopleHave:
    def test_exactly_what_the_mappings_say(self) -> None:
        one, two = TenantFactory(), TenantFactory()
        for group, role, tenant in (
            ("a", "viewer", None), ("a", "developer", one), ("b", "developer", one),
            ("b", "viewer", two), ("c", "owner", None),
        ):  # fmt: skip
            GroupMappingFactory(group=group, role=role, tenant=tenant)
        person = UserFactory()
        steps: list[tuple[set[str], set[Any]]] = [
            ({"a"}, {("viewer", None, "a"), ("developer", one.pk, "a")}),
            (
                {"a", "b"},
                {
                    ("viewer", None, "a"), ("developer", one.pk, "a"),
                    ("developer", one.pk, "b"), ("viewer", two.pk, "b"),
                },
            ),
            ({"b"}, {("developer", one.pk, "b"), ("viewer", two.pk, "b")}),
            ({"A", "b ", "unheard-of"}, set()),
        ]  # fmt: skip
        for groups, expected in steps:
            mapped_grants_apply(user=person, groups=groups, actor=SYSTEM)
            assert held(person) == expected
            n_events = all_of(AuditEvent).count()
            mapped_grants_apply(user=person, groups=groups, actor=SYSTEM)
            assert all_of(AuditEvent).count() == n_events
        assert not all_of(Membership).exists()

    def test_what_was_given_by_hand_stays_with_its_membership(self) -> None:
        member = MembershipFactory(role="developer")
        mapping = GroupMappingFactory(group="a", role="developer", tenant=member.tenant)
        mapped_grants_apply(user=member.user, groups=["a"], actor=SYSTEM)
        assert held(member.user) == {
            ("developer", member.tenant_id, None), ("developer", member.tenant_id, "a"),
        }  # fmt: skip
        mapped_grants_apply(user=member.user, groups=[], actor=SYSTEM)
        assert held(member.user) == {("developer", member.tenant_id, None)}
        assert all_of(Membership).get() == member
        mapped_grants_apply(user=member.user, groups=["a"], actor=SYSTEM)
        group_mapping_delete(mapping=mapping, by=None, actor=SYSTEM)
        assert held(member.user) == {("developer", member.tenant_id, None)}

    def test_by_hand_beside_a_group_but_not_twice(self) -> None:
        mapping = GroupMappingFactory(group="a", role="viewer")
        person = UserFactory()
        mapped_grants_apply(user=person, groups=["a"], actor=SYSTEM)
        role_grant(role=mapping.role, user=person, by=None, actor=SYSTEM)
        with pytest.raises(ValidationError):
            role_grant(role=mapping.role, user=person, by=None, actor=SYSTEM)
        assert held(person) == {("viewer", None, "a"), ("viewer", None, None)}

    def test_others_are_left_alone(self) -> None:
        GroupMappingFactory(group="a", role="viewer")
        one, two = UserFactory(), UserFactory()
        for person in (one, two):
            mapped_grants_apply(user=person, groups=["a"], actor=SYSTEM)
        mapped_grants_apply(user=one, groups=[], actor=SYSTEM)
        assert (held(one), held(two)) == (set(), {("viewer", None, "a")})

    def test_deleting_a_mapping_takes_it_away_at_once(self) -> None:
        tenant = TenantFactory()
        mapping = GroupMappingFactory(group="a", role="developer", tenant=tenant)
        person = UserFactory()
        mapped_grants_apply(user=person, groups=["a"], actor=SYSTEM)
        group_mapping_delete(mapping=mapping, by=everywhere("owner"), actor=SYSTEM)
        assert held(person) == set()
        assert not all_of(Membership).exists()
        assert actions()[-3:] == [
            "role.withdrawn", "membership.removed", "group_mapping.deleted",
        ]  # fmt: skip


class TestThePages:
    def test_made_looked_at_and_deleted(self) -> None:
        tenant = TenantFactory(name="Acme")
        client = client_of(everywhere("owner"))
        role = Role.objects.get(slug="developer")
        form = {"group": "engineers", "role": role.pk, "tenant": tenant.pk}
        assert client.post(f"{LIST}add/", form).status_code == 302
        mapping = all_of(GroupMapping).get()
        person = UserFactory()
        mapped_grants_apply(user=person, groups=["engineers"], actor=SYSTEM)
        assert "engineers" in client.get(LIST).content.decode()
        page = client.get(f"{LIST}{mapping.pk}/change/").content.decode()
        assert 'name="group"' not in page
        assert client.post(f"{LIST}{mapping.pk}/change/", {**form, "group": "x"}).status_code == 403
        assert all_of(GroupMapping).get().group == "engineers"
        whom = client.get(f"/admin/rbac/user/{person.pk}/change/").content.decode()
        assert person.username in whom
        gone = client.post(f"{LIST}{mapping.pk}/delete/", {"post": "yes"})
        assert gone.status_code == 302
        assert (all_of(GroupMapping).count(), held(person)) == (0, set())

    def test_a_refusal_is_told(self) -> None:
        client = client_of(everywhere("admin"))
        form = {"group": "engineers", "role": Role.objects.get(slug="owner").pk, "tenant": ""}
        assert client.post(f"{LIST}add/", form).status_code == 302
        assert not all_of(GroupMapping).exists()
        assert messages(client, LIST)[0].startswith("You do not have this yourself")

    @pytest.mark.parametrize("slug", ["operator", "developer", "viewer"])
    def test_shut(self, slug: str) -> None:
        mapping, client = GroupMappingFactory(), client_of(everywhere(slug))
        for page in ("", "add/", f"{mapping.pk}/change/", f"{mapping.pk}/delete/"):
            assert client.get(f"{LIST}{page}").status_code == 403
        assert client.post(f"{LIST}{mapping.pk}/delete/", {"post": "yes"}).status_code == 403
        assert all_of(GroupMapping).count() == 1
