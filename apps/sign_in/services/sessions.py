"""How sessions begin, are kept, and end."""

import time
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.contrib import auth
from django.contrib.sessions.backends.base import SessionBase, UpdateError
from django.db import DatabaseError, InterfaceError, transaction
from django.db.models import F
from django.http import HttpRequest

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.exceptions import Unavailable
from apps.core.services import change_stamp_bump
from apps.sign_in.exceptions import SessionOver
from apps.sign_in.models import SignInState
from apps.sign_in.selectors import (
    AT_KEY,
    EPOCH_KEY,
    SEEN_KEY,
    Session,
    facts_of,
    facts_refresh,
    session_standing,
)
from apps.sign_in.types import Standing

if TYPE_CHECKING:
    from apps.rbac.models import User

_TOUCH_EVERY_S: Final = 60


def session_stamp(sender: object, request: HttpRequest, user: "User", **kwargs: Any) -> None:
    """Mark a session as beginning now. A receiver of ``user_logged_in``."""
    now = int(time.time())
    request.session[AT_KEY] = now
    request.session[SEEN_KEY] = now
    request.session[EPOCH_KEY] = facts_of(user).epoch


def session_touch(session: Session) -> bool:
    """Note that the session is in use, once a minute at most; returns whether it was due."""
    now = int(time.time())
    every_s = min(_TOUCH_EVERY_S, settings.SESSION_IDLE_S // 10)
    if now - session.get(SEEN_KEY, 0) < every_s:
        return False
    session[SEEN_KEY] = now
    return True


def session_person(session_key: str) -> "User":
    """Return the person of a stored session that is fully signed in, for doors that keep a
    connection open: everything is asked anew, and counts as use.

    Raises:
        SessionOver: signed out, expired, ended elsewhere, or the second factor is missing.
        Unavailable: the database cannot be asked.
    """
    try:
        user, store, standing = _stored(session_key)
        if standing is not Standing.COMPLETE:
            raise SessionOver
        if session_touch(store):
            store.save()
    except UpdateError:
        raise SessionOver from None
    except (DatabaseError, InterfaceError) as error:
        raise Unavailable("The session cannot be checked at the moment.") from error
    return user


def is_session_open(session_key: str) -> bool:
    """Return whether a stored session is fully signed in. That is no use of it."""
    return session_onlooker(session_key) is not None


def session_onlooker(session_key: str) -> "User | None":
    """Return the person of a stored session that is fully signed in, for pages that go on by
    themselves. That is no use of it: a page left open keeps nobody signed in."""
    user, _, standing = _stored(session_key)
    return user if standing is Standing.COMPLETE else None


def _stored(session_key: str) -> "tuple[User, SessionBase, Standing]":
    store: SessionBase = import_module(settings.SESSION_ENGINE).SessionStore(session_key)
    user: Any = auth.get_user(SimpleNamespace(session=store))  # type: ignore[arg-type]
    return user, store, session_standing(user=user, session=store)


@transaction.atomic
def session_end(sender: object, request: HttpRequest, user: "User | None", **kwargs: Any) -> None:
    """End a session, and what runs in it. A receiver of ``user_logged_out``, which comes before the
    session goes: then what runs would be looked at too early."""
    if user is not None:
        request.session.flush()
        change_stamp_bump("access")


@transaction.atomic
def sessions_end(*, user: "User", actor: Actor, keep: SessionBase | None = None) -> None:
    """Sign a person out everywhere, but for the session ``keep``."""
    epoch_raise(user=user, keep=keep)
    event_record(
        action="sign_in.sessions_ended",
        actor=actor,
        obj=user,
        changes={"but_one": keep is not None},
    )


def epoch_raise(*, user: "User", keep: SessionBase | None) -> None:
    """End the sessions of a person, and what runs in them, in the caller's transaction."""
    SignInState.objects.get_or_create(user_id=user.pk)
    SignInState.objects.filter(user_id=user.pk).update(session_epoch=F("session_epoch") + 1)
    epoch = facts_refresh(user).epoch
    change_stamp_bump("access")
    if keep is not None:
        keep[EPOCH_KEY] = epoch
        keep.save()  # with the rest, so that nobody finds it ended meanwhile
