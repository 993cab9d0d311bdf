"""Signing in, step by step. Who is refused is counted by name and address, whichever secret was
wrong, and told in the audit trail."""

import time
from typing import TYPE_CHECKING, Any, Final

from django.contrib import auth
from django.contrib.auth.signals import user_login_failed
from django.db import transaction
from django.http import HttpRequest

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.sign_in.exceptions import CodeThrottled, SignInLocked
from apps.sign_in.selectors import (
    DEVICE_KEY,
    ID_TOKEN_KEY,
    PROVIDER_FACTOR_KEY,
    client_address,
    facts_of,
    may_use_password,
)
from apps.sign_in.services.locks import failure_count, failure_record, lock_check
from apps.sign_in.two_factor import code_verify
from apps.sign_in.types import Factor, ProviderPerson

if TYPE_CHECKING:
    from apps.rbac.models import User

BACKEND: Final = "apps.sign_in.backends.PersonBackend"
# Between password and code; holds the person's key and the hash of the password that was right.
PENDING_KEY: Final = "sign_in.pending"
PENDING_S: Final = 300


def password_check(*, request: HttpRequest, username: str, password: str) -> "User | None":
    """Return who may come in with these; None, after about the same work, for everybody else:
    unknown, switched off, no staff, single sign-on only, wrong password, locked."""
    user: Any = auth.authenticate(request, username=username, password=password)
    if user is not None and not (user.is_staff and may_use_password(user)):
        user_login_failed.send(__name__, credentials={"username": username}, request=request)
        user = None
    if user is None:
        failure_record(request=request, username=username, reason="password")
        return None
    try:
        # Again, because of many guesses at the same moment none saw the failures of the others.
        lock_check(request=request, username=username)
    except SignInLocked:
        return None
    return user  # type: ignore[no-any-return]


def sign_in_start(
    *, request: HttpRequest, user: "User", provider: ProviderPerson | None = None
) -> bool:
    """After the right password, or the provider's word: sign in, or wait for the code of whoever
    has a second factor that nobody checked yet. Returns whether it is done."""
    request.session.flush()  # whoever was signed in here no longer is, and the key is a new one
    id_token = None if provider is None else provider.id_token
    if provider is not None and provider.has_second_factor:
        _sign_in(request=request, user=user, factor="provider", id_token=id_token)
        return True
    if facts_of(user).device_id is None:
        _sign_in(request=request, user=user, factor=None, id_token=id_token)
        return True
    request.session[PENDING_KEY] = {
        "user": user.pk,
        "hash": user.get_session_auth_hash(),
        "at": int(time.time()),
        "id_token": id_token,
    }
    return False


def pending_user(request: HttpRequest) -> "User | None":
    """Return whose password was right a moment ago in this session, and still is."""
    pending = request.session.get(PENDING_KEY)
    if not isinstance(pending, dict) or time.time() - pending["at"] > PENDING_S:
        return None
    user: Any = auth.load_backend(BACKEND).get_user(pending["user"])
    if user is None or not user.is_staff or user.get_session_auth_hash() != pending["hash"]:
        return None
    return user  # type: ignore[no-any-return]


def sign_in_finish(*, request: HttpRequest, user: "User", code: str) -> bool:
    """Sign ``pending_user`` in if the code is right; as ``code_check`` raises."""
    factor = code_check(request=request, user=user, code=code)
    if factor is None:
        return False
    pending = request.session.pop(PENDING_KEY)
    _sign_in(request=request, user=user, factor=factor, id_token=pending["id_token"])
    return True


def code_check(*, request: HttpRequest, user: "User", code: str) -> Factor | None:
    """Return what a code was of; a wrong one counts as a failed attempt.

    Raises:
        SignInLocked: there were too many of them from this address.
        CodeThrottled: a wrong one was tried a moment ago.
    """
    lock_check(request=request, username=user.get_username())
    verdict = code_verify(user, code=code)
    if verdict.wait_s:
        raise CodeThrottled(
            f"There was a wrong code; try again in {verdict.wait_s:.0f} s.",
            retry_after_s=verdict.wait_s,
        )
    if verdict.factor is None:
        failure_count(request=request, username=user.get_username(), reason="code")
    return verdict.factor


def _sign_in(
    *, request: HttpRequest, user: "User", factor: Factor | None, id_token: str | None
) -> None:
    """id_token: the provider's where single sign-on stood in for the password."""
    with transaction.atomic():
        auth.login(request, user, backend=BACKEND)
        if factor == "provider":
            request.session[PROVIDER_FACTOR_KEY] = True
        else:
            request.session[DEVICE_KEY] = facts_of(user).device_id
        changes: dict[str, Any] = {"second_factor": factor}
        if id_token is not None:
            request.session[ID_TOKEN_KEY] = id_token
            changes["by"] = "single sign-on"
        event_record(
            action="sign_in.succeeded",
            actor=person_actor(request, user),
            obj=user,
            changes=changes,
        )


def person_actor(request: HttpRequest, user: "User") -> Actor:
    return Actor(
        kind="user", id=user.pk, label=user.get_username(), ip_address=client_address(request)
    )
