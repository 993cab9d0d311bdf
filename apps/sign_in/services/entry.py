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
from apps.sign_in.selectors import DEVICE_KEY, client_address, facts_of
from apps.sign_in.services.locks import failure_count, failure_record, lock_check
from apps.sign_in.two_factor import code_verify
from apps.sign_in.types import Factor

if TYPE_CHECKING:
    from apps.rbac.models import User

BACKEND: Final = "apps.sign_in.backends.PersonBackend"
# Between password and code; holds the person's key and the hash of the password that was right.
PENDING_KEY: Final = "sign_in.pending"
PENDING_S: Final = 300


def password_check(*, request: HttpRequest, username: str, password: str) -> "User | None":
    """Return who may come in with these; None, after about the same work, for everybody else:
    unknown, switched off, no staff, wrong password, locked."""
    user: Any = auth.authenticate(request, username=username, password=password)
    if user is not None and not user.is_staff:
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


def sign_in_start(*, request: HttpRequest, user: "User") -> bool:
    """After the right password: sign in, or wait for the code of whoever has a second factor.
    Returns whether it is done."""
    if facts_of(user).device_id is None:
        _sign_in(request=request, user=user, factor=None)
        return True
    request.session.flush()  # whoever was signed in here no longer is, and the key is a new one
    request.session[PENDING_KEY] = {
        "user": user.pk,
        "hash": user.get_session_auth_hash(),
        "at": int(time.time()),
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
    request.session.pop(PENDING_KEY, None)
    _sign_in(request=request, user=user, factor=factor)
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


def _sign_in(*, request: HttpRequest, user: "User", factor: Factor | None) -> None:
    with transaction.atomic():
        auth.login(request, user, backend=BACKEND)
        request.session[DEVICE_KEY] = facts_of(user).device_id
        event_record(
            action="sign_in.succeeded",
            actor=person_actor(request, user),
            obj=user,
            changes={"second_factor": factor},
        )


def person_actor(request: HttpRequest, user: "User") -> Actor:
    return Actor(
        kind="user", id=user.pk, label=user.get_username(), ip_address=client_address(request)
    )
