from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
from django.db import OperationalError
from django.utils import timezone

from apps.core.exceptions import AuthenticationFailed, PermissionDenied, Unavailable
from apps.core.limits import UNLIMITED, Limits
from apps.rbac.selectors import principal_of_secret, principal_of_user
from apps.rbac.types import Principal
from tests.factories import ApiTokenFactory, MembershipFactory, UserFactory

pytestmark = pytest.mark.django_db


def test_a_live_token_is_found_in_one_query(django_assert_num_queries: Any) -> None:
    token = ApiTokenFactory(
        name="ci", tenant__slug="acme", tenant__plan__weight=3.0, tokens_per_day=5
    )
    with django_assert_num_queries(1):
        principal = principal_of_secret(token.secret)
    assert principal == Principal(
        tenant_id=token.tenant_id,
        tenant_slug="acme",
        cache_salt=token.tenant.cache_salt,
        label=f"ci ({token.prefix}…)",
        limits=UNLIMITED,
        key_limits=Limits(tokens_per_day=5),
        weight=3.0,
        api_token_id=token.pk,
        scopes=frozenset({"inference", "batches"}),
    )


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"revoked_at": timezone.now()}, "This API key was revoked."),
        ({"expires_at": timezone.now() - timedelta(seconds=1)}, "This API key has expired."),
        ({"tenant__is_active": False}, "The tenant of this API key is not active."),
    ],
)
def test_a_dead_token_is_refused(state: dict[str, Any], message: str) -> None:
    token = ApiTokenFactory(**state)
    with pytest.raises(AuthenticationFailed) as refusal:
        principal_of_secret(token.secret)
    assert (refusal.value.message, refusal.value.code) == (message, "invalid_api_key")


def test_a_token_that_expires_later_is_admitted() -> None:
    token = ApiTokenFactory(expires_at=timezone.now() + timedelta(minutes=1))
    assert principal_of_secret(token.secret).api_token_id == token.pk


def test_an_unknown_secret_is_refused() -> None:
    secret = ApiTokenFactory().secret
    with pytest.raises(AuthenticationFailed):
        principal_of_secret(secret[:-1] + "y")


@pytest.mark.parametrize("secret", ["", "sk-other", "sk-nano-" + "x" * 200])
def test_what_cannot_be_a_secret_costs_no_query(
    secret: str, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(0), pytest.raises(AuthenticationFailed):
        principal_of_secret(secret)


def test_a_database_that_is_away_is_no_refusal() -> None:
    with (
        patch(
            "django.db.backends.utils.CursorWrapper.execute", side_effect=OperationalError("away")
        ),
        pytest.raises(Unavailable) as error,
    ):
        principal_of_secret("sk-nano-" + "x" * 43)
    assert error.value.status == 503


def test_a_member_acts_in_their_tenant() -> None:
    membership = MembershipFactory(user__username="bob")
    tenant = membership.tenant
    assert principal_of_user(membership.user) == Principal(
        tenant_id=tenant.pk,
        tenant_slug=tenant.slug,
        cache_salt=tenant.cache_salt,
        label="bob",
        limits=UNLIMITED,
        user_id=membership.user_id,
        subject_id=membership.user_id,
        scopes=frozenset({"inference", "batches"}),
    )


def test_a_user_without_a_tenant_or_switched_off_is_denied() -> None:
    with pytest.raises(PermissionDenied):
        principal_of_user(UserFactory(admin=True))
    with pytest.raises(PermissionDenied):
        principal_of_user(MembershipFactory(tenant__is_active=False).user)
    with pytest.raises(PermissionDenied):
        principal_of_user(MembershipFactory(user__is_active=False).user)
