"""JWTs: what an exchange gives, what ends it, and the keys that sign."""

import base64
import io
import json
from datetime import datetime, timedelta
from typing import Any

import jwt
import pytest
from django.core.management import call_command
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import SYSTEM, Actor
from apps.core.exceptions import (
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    Unavailable,
)
from apps.rbac.jwt_tokens import grant_of_jwt, public_keys
from apps.rbac.models import ApiToken, JwtKey, RoleGrant, TokenFamily
from apps.rbac.selectors import (
    grant_of_secret,
    identities_in_force,
    principal_of_secret,
    principal_of_token,
)
from apps.rbac.services import (
    api_token_revoke,
    jwt_key_rotate,
    token_family_revoke,
    token_pair_issue,
    token_pair_refresh,
)
from apps.rbac.services import jwt as services
from apps.rbac.types import DEFAULT_SCOPES, Principal
from apps.tenants.models import Membership
from tests.factories import ApiTokenFactory, MembershipFactory
from tests.integration.rbac.jwts import issue, refused, said, signer, state, token
from tests.rows import all_of

__all__ = ["token"]

pytestmark = pytest.mark.django_db


# -- what an exchange gives -----------------------------------------------------------------------


def test_an_exchange_gives_what_the_api_token_may(token: ApiToken) -> None:
    before = timezone.now()
    pair = issue(token)
    family, key = all_of(TokenFamily).get(), JwtKey.objects.get()
    assert jwt.get_unverified_header(pair.access_token) == {
        "alg": "EdDSA", "kid": key.kid, "typ": "at+jwt",
    }  # fmt: skip
    claims = said(pair.access_token)
    assert claims == {
        "iss": "nano-llm",
        "aud": "nano-llm-api",
        "sub": f"api_token:{token.pk}",
        "tenant": token.tenant.slug,
        "scopes": ["inference", "batches"],
        "family": family.public_id,
        "jti": claims["jti"],
        "iat": claims["iat"],
        "nbf": claims["iat"] - 30,
        "exp": claims["iat"] + 15 * 60,
    }
    assert 0 <= claims["iat"] - int(before.timestamp()) <= 5
    refresh = said(pair.refresh_token)
    assert refresh["exp"] - refresh["iat"] == 24 * 3600
    assert (refresh["jti"], len({refresh["jti"], claims["jti"]})) == (family.refresh_jti, 2)

    own, found = grant_of_secret(token.secret), grant_of_jwt(pair.access_token)  # type: ignore[attr-defined]
    assert found.principal.family_id == family.pk
    assert found.principal.api_token_id == token.pk
    assert found.principal.scopes == own.principal.scopes == frozenset(DEFAULT_SCOPES)
    assert found.expires_at == datetime.fromtimestamp(claims["exp"], tz=before.tzinfo)
    event = all_of(AuditEvent).get()
    assert (event.action, event.actor_kind, event.actor_id, event.tenant_id) == (
        "jwt.issued", "token", token.pk, token.tenant_id,
    )  # fmt: skip
    kept = json.dumps([*all_of(TokenFamily).values(), *all_of(AuditEvent).values()], default=str)
    assert pair.access_token not in kept and pair.refresh_token not in kept


def test_a_part_of_the_scopes_may_be_asked_for_and_never_more(token: ApiToken) -> None:
    pair = issue(token, scopes=["inference"])
    assert pair.scopes == ("inference",)
    assert grant_of_jwt(pair.access_token).principal.scopes == {"inference"}
    all_of(ApiToken).update(scopes=["batches"])
    assert grant_of_jwt(pair.access_token).principal.scopes == frozenset()
    before = state()
    for scopes, error in (
        (["inference"], PermissionDenied),
        (["inference", "batches"], PermissionDenied),
        (["admin"], InvalidRequest),
        ([], InvalidRequest),
    ):
        with pytest.raises(error):
            issue(token, scopes=scopes)
    assert state() == before


def test_it_does_no_more_than_its_owner_may() -> None:
    member = MembershipFactory(role="developer")
    pair = issue(ApiTokenFactory(tenant=member.tenant, owner=member.user))
    found = grant_of_jwt(pair.access_token).principal
    assert (found.subject_id, found.scopes) == (member.user_id, frozenset(DEFAULT_SCOPES))
    all_of(RoleGrant).all().delete()
    assert grant_of_jwt(pair.access_token).principal.scopes == frozenset()
    all_of(Membership).filter(user=member.user).delete()
    refused("invalid_api_key", lambda: grant_of_jwt(pair.access_token))
    refused("invalid_api_key", lambda: token_pair_refresh(refresh_token=pair.refresh_token))


def test_nothing_outlives_the_api_token(token: ApiToken) -> None:
    until = (timezone.now() + timedelta(minutes=5)).replace(microsecond=0)
    all_of(ApiToken).update(expires_at=until)
    pair = issue(token)
    assert (pair.access_expires_at, pair.refresh_expires_at) == (until, until)
    again = token_pair_refresh(refresh_token=pair.refresh_token)
    assert (again.access_expires_at, again.refresh_expires_at) == (until, until)
    assert said(again.access_token)["exp"] == until.timestamp()
    all_of(ApiToken).update(expires_at=timezone.now())  # brought forward meanwhile
    refused("invalid_api_key", lambda: grant_of_jwt(pair.access_token))
    refused("invalid_api_key", lambda: token_pair_refresh(refresh_token=again.refresh_token))


def test_a_jwt_is_exchanged_for_nothing(token: ApiToken) -> None:
    pair = issue(token, scopes=["inference"])
    before = state()
    with pytest.raises(PermissionDenied) as error:
        token_pair_issue(principal=grant_of_jwt(pair.access_token).principal)
    assert error.value.code == "api_key_required"
    assert state() == before


def test_families_are_bounded_and_those_that_are_over_go(
    token: ApiToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "MAX_FAMILIES", 2)
    issue(token)
    issue(token)
    before = state()
    with pytest.raises(Overloaded):
        issue(token)
    assert state() == before
    all_of(TokenFamily).update(expires_at=timezone.now())
    issue(token)
    assert all_of(TokenFamily).count() == 3  # what was begun in time may end
    all_of(TokenFamily).update(expires_at=timezone.now() - services.FAMILY_KEPT)
    issue(token)
    assert all_of(TokenFamily).count() == 1


def test_what_was_begun_in_time_goes_on_when_others_are_issued(token: ApiToken) -> None:
    principal = grant_of_jwt(issue(token).access_token).principal
    all_of(TokenFamily).update(expires_at=timezone.now())
    issue(token)
    assert identities_in_force([principal.identity]) == {principal.identity}
    kept = principal_of_token(token.pk, family_id=principal.family_id)
    assert (kept.family_id, kept.scopes) == (principal.family_id, principal.scopes)


# -- what ends them -------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["access_token", "refresh_token"])
def test_revoking_a_family_ends_its_tokens_and_no_others(token: ApiToken, use: str) -> None:
    pair, other = issue(token), issue(token)
    gone, kept = (grant_of_jwt(each.access_token).principal for each in (pair, other))
    own = principal_of_secret(token.secret)  # type: ignore[attr-defined]
    identities = [each.identity for each in (gone, kept, own)]
    assert identities_in_force(identities) == set(identities)
    token_family_revoke(token=getattr(pair, use))
    assert identities_in_force(identities) == {kept.identity, own.identity}
    refused("token_revoked", lambda: grant_of_jwt(pair.access_token))
    before = state()
    token_family_revoke(token=getattr(pair, use))  # a second time is no change
    assert state() == before


def test_revoking_the_api_token_ends_everything(token: ApiToken, actor: Actor) -> None:
    pair = issue(token)
    identity = grant_of_jwt(pair.access_token).principal.identity
    api_token_revoke(token=token, actor=actor)
    assert identities_in_force([identity]) == set()
    refused("invalid_api_key", lambda: grant_of_jwt(pair.access_token))
    refused("invalid_api_key", lambda: token_pair_refresh(refresh_token=pair.refresh_token))


# -- keys -----------------------------------------------------------------------------------------


def test_a_new_key_signs_and_the_old_one_verifies_until_its_tokens_are_over(
    token: ApiToken,
) -> None:
    old = issue(token)
    output = io.StringIO()
    call_command("rotate_jwt_key", stdout=output)
    new = issue(token)
    kids = [jwt.get_unverified_header(each.access_token)["kid"] for each in (old, new)]
    assert f"with the key {kids[1]} from now on" in output.getvalue()
    assert [key["kid"] for key in public_keys()] == kids[::-1]
    assert grant_of_jwt(old.access_token).principal.api_token_id == token.pk
    again = token_pair_refresh(refresh_token=old.refresh_token)
    assert jwt.get_unverified_header(again.refresh_token)["kid"] == kids[1]
    until = JwtKey.objects.get(kid=kids[0]).verifies_until
    assert until is not None and until > old.refresh_expires_at
    JwtKey.objects.filter(kid=kids[0]).update(verifies_until=timezone.now())
    refused("invalid_token", lambda: grant_of_jwt(old.access_token))
    assert [key["kid"] for key in public_keys()] == kids[1:]
    jwt_key_rotate(actor=SYSTEM)
    assert not JwtKey.objects.filter(kid=kids[0]).exists()


def test_a_stolen_key_ends_at_once(token: ApiToken) -> None:
    pair = issue(token)
    identity = grant_of_jwt(pair.access_token).principal.identity
    call_command("rotate_jwt_key", at_once=True, stdout=io.StringIO())
    assert identities_in_force([identity]) == set()
    refused("invalid_token", lambda: grant_of_jwt(pair.access_token))
    assert len(public_keys()) == 1
    assert grant_of_jwt(issue(token).access_token).principal.api_token_id == token.pk


def test_others_can_verify_with_the_public_keys_and_no_private_one_is_said(
    token: ApiToken,
) -> None:
    pair = issue(token)
    keys = public_keys()
    assert [set(key) for key in keys] == [{"kty", "crv", "use", "alg", "kid", "x"}]
    public = jwt.PyJWK.from_dict(keys[0])
    found = jwt.decode(pair.access_token, public, ["EdDSA"], audience="nano-llm-api")
    assert found["sub"] == f"api_token:{token.pk}"
    _, key = signer()
    stored = json.dumps([*JwtKey.objects.values()], default=str)
    raw = key.private_bytes_raw()
    assert raw.hex() not in stored
    assert base64.urlsafe_b64encode(raw).decode().rstrip("=") not in stored


def test_a_changed_secret_key_is_told_and_mended(token: ApiToken, settings: Any) -> None:
    pair = issue(token)
    settings.SECRET_KEY = "another" * 10
    before = state()
    with pytest.raises(Unavailable, match="rotate_jwt_key"):
        issue(token)
    assert state() == before
    assert grant_of_jwt(pair.access_token).principal.api_token_id == token.pk
    jwt_key_rotate(actor=SYSTEM)
    issue(token)


def test_it_is_checked_in_two_queries(token: ApiToken, django_assert_num_queries: Any) -> None:
    text = issue(token).access_token
    with django_assert_num_queries(2):
        found: Principal = grant_of_jwt(text).principal
    with django_assert_num_queries(2):  # it has no owner: nobody is to be asked about people
        identities_in_force([found.identity])
