"""What claims of the single sign-on provider mean here, once they are known to be its own."""

import unicodedata
from collections.abc import Mapping
from typing import Any, Final

from django.conf import settings

from apps.sign_in.exceptions import SignInRefused
from apps.sign_in.types import ProviderPerson

_MAX_GROUPS: Final = 2000
_MAX_GROUP_CHARS: Final = 200  # longer ones cannot be mapped
_MAX_CHARS: Final = 255


def claims_wanted() -> set[str]:
    """Return the claims that the userinfo endpoint is asked for where the ID token lacks them."""
    return {"preferred_username", "email", settings.OIDC_GROUPS_CLAIM} - {""}


def person_of(claims: Mapping[str, Any], *, id_token: str) -> ProviderPerson:
    """Raises ValueError where one is not what it should be, SignInRefused where groups are."""
    subject = _text(claims["sub"])
    email = _text(claims["email"]) if claims.get("email_verified") is True else ""
    name = claims.get("preferred_username") or email or subject
    return ProviderPerson(
        issuer=settings.OIDC_ISSUER,
        subject=subject,
        name=unicodedata.normalize("NFKC", _text(name)),
        email=email,
        groups=_groups(claims),
        has_second_factor=_has_second_factor(claims),
        id_token=id_token,
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_CHARS or not value.isprintable():
        raise ValueError("not a name")
    return value


def _groups(claims: Mapping[str, Any]) -> frozenset[str]:
    """A provider that is silent about groups is not one that says there are none."""
    if not settings.OIDC_GROUPS_CLAIM:
        return frozenset()
    groups = claims.get(settings.OIDC_GROUPS_CLAIM)
    if (
        not isinstance(groups, list)
        or len(groups) > _MAX_GROUPS
        or not all(isinstance(each, str) for each in groups)
    ):
        raise SignInRefused(
            "The provider did not say which groups you are in.", code="groups_unknown"
        )
    return frozenset(
        each for each in groups if each.isprintable() and len(each) <= _MAX_GROUP_CHARS
    )


def _has_second_factor(claims: Mapping[str, Any]) -> bool:
    amr = claims.get("amr") or []
    return claims.get("acr") in settings.OIDC_SECOND_FACTOR_ACR or any(
        each in settings.OIDC_SECOND_FACTOR_AMR for each in amr
    )
