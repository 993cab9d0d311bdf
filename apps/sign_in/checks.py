"""What is wrong with the settings of single sign-on is said at the start, by name."""

from typing import Any, Final

from django.conf import settings
from django.core.checks import CheckMessage, Error

from apps.sign_in.provider import is_secure

_NEEDED: Final = ("OIDC_ISSUER", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET")
_ALONE_USELESS: Final = (
    "OIDC_ALLOWED_DOMAINS", "OIDC_SECOND_FACTOR_AMR", "OIDC_SECOND_FACTOR_ACR",
)  # fmt: skip


def single_sign_on_check(**_: Any) -> list[CheckMessage]:
    lacking = [name for name in _NEEDED if not getattr(settings, name)]
    if len(lacking) == len(_NEEDED):
        stray = [name for name in _ALONE_USELESS if getattr(settings, name)]
        if not settings.OIDC_PASSWORD_SIGN_IN:
            stray.append("OIDC_PASSWORD_SIGN_IN")
        return [
            Error(f"{name} is set, but single sign-on is not: set {', '.join(_NEEDED)}.",
                  id="sign_in.E001")
            for name in stray
        ]  # fmt: skip
    found: list[CheckMessage] = [
        Error(f"Single sign-on is configured by half: {name} is not set.", id="sign_in.E001")
        for name in lacking
    ]
    issuer = settings.OIDC_ISSUER
    if issuer and (not is_secure(issuer) or "?" in issuer or "#" in issuer):
        found.append(
            Error(f"OIDC_ISSUER={issuer!r} is not an https:// address without a query.",
                  id="sign_in.E002")
        )  # fmt: skip
    return found
