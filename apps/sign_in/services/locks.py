"""Failed attempts: counted, told in the audit trail, and forgotten again."""

from datetime import datetime
from typing import Any

from axes.handlers.proxy import AxesProxyHandler
from axes.models import AccessAttempt
from django.contrib import auth
from django.contrib.auth.signals import user_login_failed
from django.db import transaction
from django.http import HttpRequest

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.sign_in.exceptions import SignInLocked
from apps.sign_in.selectors import client_address, counted_address, locked_until


def lock_check(*, request: HttpRequest, username: str) -> None:
    """Raises SignInLocked while the name is locked from this address."""
    if not AxesProxyHandler.is_allowed(request, {"username": username}):
        request.axes_locked_out = True  # type: ignore[attr-defined]
        request.sign_in_locked_until = _lock_end(request, username)  # type: ignore[attr-defined]
        raise SignInLocked


def failure_count(*, request: HttpRequest, username: str, reason: str) -> None:
    """Count a failure that Django's own authentication has not seen, and tell of it."""
    user_login_failed.send(__name__, credentials={"username": username}, request=request)
    failure_record(request=request, username=username, reason=reason)


def failure_record(*, request: HttpRequest, username: str, reason: str) -> None:
    """Tell of the failure that was just counted, and of the lock that it began. Attempts during a
    lock are not told: they could fill the trail. Nor is a name that nobody has: people type
    passwords there."""
    user: Any = auth.get_user_model()._default_manager.filter(username=username).first()
    actor = Actor(kind="system", label="sign-in", ip_address=client_address(request))
    n_failures = getattr(request, "axes_failures_since_start", None)
    if n_failures is not None:
        changes = {"reason": reason, "is_known": user is not None}
        event_record(action="sign_in.failed", actor=actor, obj=user, changes=changes)
    if not getattr(request, "axes_locked_out", False):
        return
    until = _lock_end(request, username)
    request.sign_in_locked_until = until  # type: ignore[attr-defined]
    if n_failures is not None:
        event_record(
            action="sign_in.locked",
            actor=actor,
            obj=user,
            changes={"until": until.isoformat() if until else None, "is_known": user is not None},
        )


def _lock_end(request: HttpRequest, username: str) -> datetime | None:
    return locked_until(username=username, address=counted_address(request))


@transaction.atomic
def lock_lift(*, username: str, address: str | None, actor: Actor) -> int:
    """Forget the failures of a name from an address; returns how many there were."""
    rows = AccessAttempt.objects.filter(username=username, ip_address=address)
    n_failures = int(sum(rows.values_list("failures_since_start", flat=True)))
    if not n_failures:
        return 0
    rows.delete()
    user: Any = auth.get_user_model()._default_manager.filter(username=username).first()
    event_record(
        action="sign_in.lock_lifted",
        actor=actor,
        obj=user,
        changes={"address": address, "failures": n_failures, "is_known": user is not None},
    )
    return n_failures


@transaction.atomic
def locks_lift(*, username: str, actor: Actor) -> int:
    """As ``lock_lift``, from every address."""
    rows = AccessAttempt.objects.filter(username=username).order_by("ip_address")
    addresses = list(rows.values_list("ip_address", flat=True).distinct())
    return sum(lock_lift(username=username, address=address, actor=actor) for address in addresses)
