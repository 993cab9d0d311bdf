import hashlib
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission
from django.core.exceptions import ValidationError
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.exceptions import Conflict, InvalidRequest
from apps.core.selectors import change_stamps
from apps.rbac.models import ApiToken, User
from apps.rbac.services import (
    api_token_issue,
    api_token_revoke,
    api_token_touch,
    api_token_update,
    user_create,
    user_password_set,
    user_permissions_set,
    user_update,
)
from tests.factories import ApiTokenFactory, TenantFactory, UserFactory
from tests.rows import all_of

pytestmark = pytest.mark.django_db


def test_issue_keeps_prefix_and_digest_only(actor: Actor) -> None:
    tenant = TenantFactory()
    issued = api_token_issue(tenant=tenant, name="ci", actor=actor)
    assert issued.secret.startswith("sk-nano-")
    assert len(issued.secret) == len("sk-nano-") + 43
    stored = all_of(ApiToken).get()
    assert stored.prefix == issued.secret[:14]
    assert stored.digest == hashlib.sha256(issued.secret.encode()).hexdigest()
    row = all_of(ApiToken).values().get()
    event = all_of(AuditEvent).values().get()
    assert issued.secret not in f"{row}{event}{issued!r}"
    assert (event["action"], event["tenant_id"]) == ("api_token.issued", tenant.pk)
    assert change_stamps() == {"access": 1}


def test_issue_refuses_an_expiry_in_the_past(actor: Actor) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        api_token_issue(
            tenant=TenantFactory(),
            name="ci",
            actor=actor,
            expires_at=timezone.now() - timedelta(seconds=1),
        )
    assert refusal.value.param == "expires_at"
    assert not all_of(ApiToken).exists()
    assert not all_of(AuditEvent).exists()


def test_revoke_is_for_ever_and_told_once(actor: Actor) -> None:
    token = ApiTokenFactory()
    revoked_at = api_token_revoke(token=token, actor=actor).revoked_at
    again = api_token_revoke(token=token, actor=actor)
    assert revoked_at is not None
    assert again.revoked_at == revoked_at
    assert all_of(AuditEvent).get().action == "api_token.revoked"
    assert change_stamps() == {"access": 1}


def test_update_changes_name_and_expiry_but_not_the_tenant(actor: Actor) -> None:
    token = ApiTokenFactory(name="ci")
    token.name = "deploy"
    api_token_update(token=token, actor=actor)
    assert all_of(AuditEvent).get().changes == {"name": ["ci", "deploy"]}
    token.tenant = TenantFactory()
    with pytest.raises(InvalidRequest):
        api_token_update(token=token, actor=actor)
    assert all_of(ApiToken).get().tenant_id != token.tenant_id


def test_touch_writes_at_most_every_five_minutes() -> None:
    token = ApiTokenFactory()
    api_token_touch(token.pk)
    first = all_of(ApiToken).get().last_used_at
    assert first is not None
    api_token_touch(token.pk)
    assert all_of(ApiToken).get().last_used_at == first
    all_of(ApiToken).update(last_used_at=first - timedelta(minutes=6))
    api_token_touch(token.pk)
    assert all_of(ApiToken).get().last_used_at >= first


def test_user_create_hashes_the_password_and_tells_no_secret(actor: Actor) -> None:
    user = user_create(
        username="ops", password="correct horse 9", actor=actor, is_staff=True, is_superuser=True
    )
    assert User.objects.get().check_password("correct horse 9")
    event = all_of(AuditEvent).get()
    assert (event.action, event.object_id) == ("user.created", str(user.pk))
    assert event.changes == {"username": "ops", "is_staff": True, "is_superuser": True}


def test_user_create_refuses_a_weak_password(actor: Actor) -> None:
    with pytest.raises(ValidationError):
        user_create(username="ops", password="12345", actor=actor)
    assert not User.objects.exists()


def test_user_update_never_touches_the_password(actor: Actor) -> None:
    user = UserFactory(password="correct horse 9", email="a@example.com")
    user.email = "b@example.com"
    user.password = "nonsense"
    user_update(user=user, actor=actor)
    stored = User.objects.get()
    assert stored.check_password("correct horse 9")
    assert all_of(AuditEvent).get().changes == {"email": ["a@example.com", "b@example.com"]}


@pytest.mark.parametrize("field", ["is_active", "is_superuser"])
def test_the_last_superuser_cannot_be_switched_off(actor: Actor, field: str) -> None:
    user = UserFactory(admin=True)
    UserFactory(admin=True, is_active=False)
    setattr(user, field, False)
    with pytest.raises(Conflict):
        user_update(user=user, actor=actor)
    assert getattr(User.objects.get(pk=user.pk), field) is True
    assert not all_of(AuditEvent).exists()
    UserFactory(admin=True)
    user_update(user=user, actor=actor)
    assert getattr(User.objects.get(pk=user.pk), field) is False


def test_permissions_are_set_and_told(actor: Actor) -> None:
    user = UserFactory()
    view, change = Permission.objects.filter(content_type__app_label="tenants").order_by(
        "codename"
    )[:2]
    user_permissions_set(user=user, permissions=[view], actor=actor)
    user_permissions_set(user=user, permissions=[change], actor=actor)
    user_permissions_set(user=user, permissions=[change], actor=actor)
    assert list(user.user_permissions.all()) == [change]
    assert list(all_of(AuditEvent).order_by("id").values_list("changes", flat=True)) == [
        {"added": [view.codename], "removed": []},
        {"added": [change.codename], "removed": [view.codename]},
    ]


def test_password_set_is_told_without_the_password(actor: Actor) -> None:
    user = UserFactory()
    user_password_set(user=user, password="correct horse 9", actor=actor)
    assert User.objects.get().check_password("correct horse 9")
    event = all_of(AuditEvent).get()
    assert (event.action, event.changes) == ("user.password_changed", {})
    with pytest.raises(ValidationError):
        user_password_set(user=user, password="short", actor=actor)
    assert User.objects.get().check_password("correct horse 9")
