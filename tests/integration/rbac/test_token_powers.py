"""What a token may do: never more than its owner, from where it is allowed, until it is rotated."""

from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.exceptions import (
    AuthenticationFailed,
    Conflict,
    InvalidRequest,
    PermissionDenied,
)
from apps.rbac.models import ApiToken, RoleGrant, User
from apps.rbac.selectors import principal_of_secret
from apps.rbac.services import (
    api_token_issue,
    api_token_revoke,
    api_token_rotate,
    api_token_update,
)
from apps.rbac.types import DEFAULT_SCOPES
from tests.factories import ApiTokenFactory, MembershipFactory, TenantFactory, UserFactory
from tests.rows import all_of

pytestmark = pytest.mark.django_db


def member(role: str | None = "developer", **fields: Any) -> Any:
    return MembershipFactory(role=role, **fields)


def n_tokens_and_events() -> tuple[int, int]:
    return all_of(ApiToken).count(), all_of(AuditEvent).count()


def test_a_developer_issues_a_token_of_their_own(actor: Actor) -> None:
    row = member()
    issued = api_token_issue(
        tenant=row.tenant, name="ci", created_by=row.user, owner=row.user, actor=actor
    )
    principal = principal_of_secret(issued.secret)
    assert (principal.subject_id, principal.scopes) == (row.user_id, frozenset(DEFAULT_SCOPES))
    event = all_of(AuditEvent).get()
    assert event.changes["owner"] == row.user.username
    assert issued.secret not in str(event.changes)


@pytest.mark.parametrize(
    ("role", "owner", "reason"),
    [
        ("viewer", "self", "You may not issue tokens of this tenant."),
        ("developer", None, "Only who may issue tokens everywhere"),
        ("developer", "colleague", "A token of yours belongs to you or to a service account."),
        ("developer", "mighty account", "The owner may do more than you."),
        ("developer", "stranger", "The owner is no member of this tenant."),
        ("developer", "gone", "This user is switched off."),
    ],
)
def test_nobody_issues_more_than_they_have(
    actor: Actor, role: str, owner: str | None, reason: str
) -> None:
    row = member(role)
    owners: dict[str | None, User | None] = {
        None: None,
        "self": row.user,
        "colleague": member(tenant=row.tenant).user,
        "mighty account": member("owner", tenant=row.tenant, user__is_service=True).user,
        "stranger": UserFactory(),
        "gone": member(tenant=row.tenant, user__is_active=False).user,
    }
    before = n_tokens_and_events()
    with pytest.raises((PermissionDenied, InvalidRequest)) as refusal:
        api_token_issue(
            tenant=row.tenant, name="x", created_by=row.user, owner=owners[owner], actor=actor
        )
    assert refusal.value.message.startswith(reason)
    assert n_tokens_and_events() == before


def test_a_tenants_token_is_not_issued_from_another_tenant(actor: Actor) -> None:
    row, other = member("owner"), TenantFactory()
    with pytest.raises(PermissionDenied):
        api_token_issue(tenant=other, name="x", created_by=row.user, owner=None, actor=actor)
    assert not all_of(ApiToken).exists()


def test_a_developer_issues_one_for_a_service_account(actor: Actor) -> None:
    row = member()
    account = member(tenant=row.tenant, user__is_service=True).user
    issued = api_token_issue(
        tenant=row.tenant, name="bot", created_by=row.user, owner=account, actor=actor
    )
    row.user.is_active = False
    row.user.save()
    assert principal_of_secret(issued.secret).subject_id == account.pk


def test_a_token_does_less_as_soon_as_its_owner_may(django_assert_num_queries: Any) -> None:
    row = member()
    token = ApiTokenFactory(tenant=row.tenant, owner=row.user)
    with django_assert_num_queries(4):
        assert principal_of_secret(token.secret).scopes == {"inference", "batches"}
    all_of(RoleGrant).all().delete()
    assert principal_of_secret(token.secret).scopes == frozenset()
    row.delete()
    with pytest.raises(AuthenticationFailed) as refusal:
        principal_of_secret(token.secret)
    assert refusal.value.message == "The owner of this API key is no member of its tenant."
    member(tenant=row.tenant, user=row.user)
    row.user.is_active = False
    row.user.save()
    with pytest.raises(AuthenticationFailed):
        principal_of_secret(token.secret)


def test_scopes_narrow_a_token(actor: Actor) -> None:
    token = ApiTokenFactory(scopes=["batches"])
    assert principal_of_secret(token.secret).scopes == {"batches"}
    token.scopes = []
    with pytest.raises(ValidationError):
        api_token_update(token=token, actor=actor)
    token.scopes = ["everything"]
    with pytest.raises(ValidationError):
        token.full_clean()
    assert all_of(ApiToken).get().scopes == ["batches"]


def test_a_viewer_cannot_widen_a_token(actor: Actor) -> None:
    row = member("viewer")
    token = ApiTokenFactory(tenant=row.tenant, owner=row.user, scopes=["batches"])
    token.scopes = ["inference", "batches"]
    with pytest.raises(PermissionDenied):
        api_token_update(token=token, by=row.user, actor=actor)
    assert all_of(ApiToken).get().scopes == ["batches"]


BOUNDS: dict[str, Any] = {
    "scopes": ["batches"],
    "allowed_networks": "192.0.2.0/24",
    "requests_per_minute": 5,
    "tokens_per_day": 100,
    "allowed_routes": "small",
}
WIDER: list[tuple[str, Any]] = [
    ("scopes", ["inference", "batches"]),
    ("allowed_networks", ""),
    ("allowed_networks", "192.0.0.0/16"),
    ("allowed_networks", "192.0.2.0/25\n2001:db8::/32"),
    ("requests_per_minute", None),
    ("tokens_per_day", 101),
    ("allowed_routes", "small large"),
    ("expires_at", None),
    ("expires_at", timezone.now() + timedelta(days=3)),
]


@pytest.mark.parametrize(("name", "value"), WIDER)
@pytest.mark.parametrize("whose", ["tenant", "colleague"])
def test_who_could_not_issue_a_token_makes_it_do_no_more(
    name: str, value: Any, whose: str, actor: Actor
) -> None:
    """Else whoever once had its secret would bring it back to life, or out of its bounds."""
    row = member("developer")
    owner = None if whose == "tenant" else member("developer", tenant=row.tenant).user
    expired = timezone.now() - timedelta(days=1)
    token = ApiTokenFactory(tenant=row.tenant, owner=owner, expires_at=expired, **BOUNDS)
    before = all_of(ApiToken).values().get()
    setattr(token, name, value)
    with pytest.raises(PermissionDenied):
        api_token_update(token=token, by=row.user, actor=actor)
    assert all_of(ApiToken).values().get() == before
    assert not all_of(AuditEvent).filter(action="api_token.updated").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", "renamed"),
        ("allowed_networks", "192.0.2.128/25"),
        ("requests_per_minute", 4),
        ("max_context_tokens", 64),
        ("expires_at", timezone.now()),
    ],
)
def test_who_may_change_tokens_narrows_any_of_their_tenant(
    name: str, value: Any, actor: Actor
) -> None:
    row = member("developer")
    later = timezone.now() + timedelta(days=1)
    token = ApiTokenFactory(tenant=row.tenant, expires_at=later, **BOUNDS)
    setattr(token, name, value)
    api_token_update(token=token, by=row.user, actor=actor)
    assert getattr(all_of(ApiToken).get(), name) == value


@pytest.mark.parametrize(("name", "value"), WIDER)
def test_ones_own_token_is_widened_again(name: str, value: Any, actor: Actor) -> None:
    row = member("developer")
    later = timezone.now() + timedelta(days=1)
    token = ApiTokenFactory(tenant=row.tenant, owner=row.user, expires_at=later, **BOUNDS)
    setattr(token, name, value)
    api_token_update(token=token, by=row.user, actor=actor)
    assert getattr(all_of(ApiToken).get(), name) == value


@pytest.mark.parametrize("text", ["300.1.1.1", "10.0.0.1/8", "localhost", "10.0.0.0/8, ::1"])
def test_networks_that_are_none(text: str, actor: Actor) -> None:
    with pytest.raises(ValidationError) as refusal:
        api_token_issue(tenant=TenantFactory(), name="x", allowed_networks=text, actor=actor)
    assert "allowed_networks" in refusal.value.message_dict
    assert not all_of(ApiToken).exists()


# -- rotation -----------------------------------------------------------------------------------


def test_rotation_overlaps(actor: Actor) -> None:
    row = member()
    old = ApiTokenFactory(
        tenant=row.tenant, owner=row.user, scopes=["inference"], tokens_per_day=5,
        allowed_networks="192.0.2.0/24", expires_at=timezone.now() + timedelta(days=90),
    )  # fmt: skip
    issued = api_token_rotate(token=old, overlap=timedelta(hours=1), actor=actor)
    new = issued.token
    for name in ("tenant_id", "owner_id", "name", "scopes", "tokens_per_day", "allowed_networks"):
        assert getattr(new, name) == getattr(old, name), name
    old.refresh_from_db()
    left = old.expires_at - timezone.now()
    assert timedelta(minutes=59) < left <= timedelta(hours=1)
    assert timedelta(days=89) < new.expires_at - timezone.now() <= timedelta(days=90)
    old_principal, new_principal = (
        principal_of_secret(secret) for secret in (old.secret, issued.secret)
    )
    assert old_principal.tenant_id == new_principal.tenant_id
    actions = list(all_of(AuditEvent).order_by("id").values_list("action", flat=True))
    assert actions == ["api_token.issued", "api_token.rotated"]
    with pytest.raises(Conflict):
        api_token_rotate(token=old, overlap=timedelta(hours=1), actor=actor)


def test_rotation_never_lengthens_a_life(actor: Actor) -> None:
    soon = timezone.now() + timedelta(minutes=1)
    old = ApiTokenFactory(expires_at=soon)
    api_token_rotate(token=old, overlap=timedelta(days=1), actor=actor)
    old.refresh_from_db()
    assert old.expires_at == soon


def test_rotation_at_once_ends_the_old_one(actor: Actor) -> None:
    old = ApiTokenFactory()
    issued = api_token_rotate(token=old, overlap=timedelta(0), actor=actor)
    with pytest.raises(AuthenticationFailed):
        principal_of_secret(old.secret)
    assert principal_of_secret(issued.secret).api_token_id == issued.token.pk


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=31)])
def test_an_overlap_out_of_bounds(overlap: timedelta, actor: Actor) -> None:
    token = ApiTokenFactory()
    with pytest.raises(InvalidRequest) as refusal:
        api_token_rotate(token=token, overlap=overlap, actor=actor)
    assert refusal.value.param == "overlap"
    assert all_of(ApiToken).values_list("expires_at", flat=True).get() is None


def test_a_dead_token_is_not_rotated_back_to_life(actor: Actor) -> None:
    token = ApiTokenFactory()
    api_token_revoke(token=token, actor=actor)
    with pytest.raises(Conflict):
        api_token_rotate(token=token, overlap=timedelta(0), actor=actor)
    assert all_of(ApiToken).count() == 1
