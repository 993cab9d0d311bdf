"""A person's authenticator and backup codes: enrolled, replaced, removed by themselves, reset by
somebody else. Secrets are in what is returned to their person, and in no event."""

from typing import TYPE_CHECKING, Final

from django.db import transaction
from django.http import HttpRequest

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.exceptions import Conflict
from apps.core.services import change_stamp_bump
from apps.sign_in.exceptions import CodeWrong, ConfirmationFailed, SignedInTooLongAgo
from apps.sign_in.models import SignInState
from apps.sign_in.selectors import (
    DEVICE_KEY,
    facts_of,
    facts_refresh,
    is_fresh_single_sign_on,
    is_two_factor_required,
)
from apps.sign_in.services.entry import code_check, person_actor
from apps.sign_in.services.locks import failure_count, lock_check
from apps.sign_in.services.sessions import epoch_raise
from apps.sign_in.two_factor import (
    authenticator_put,
    backup_codes_put,
    code_is_of,
    devices_delete,
    draft_key,
    enrolment_draft,
)
from apps.sign_in.types import EnrolmentDraft

if TYPE_CHECKING:
    from apps.rbac.models import User

# The secret that a person's app has and the platform not yet: in the session until it is confirmed,
# so that a page that is looked at twice shows the same one.
_DRAFT_KEY: Final = "sign_in.draft"


def draft_of_session(*, request: HttpRequest, user: "User") -> EnrolmentDraft:
    key = request.session.get(_DRAFT_KEY)
    if not isinstance(key, str):
        key = request.session[_DRAFT_KEY] = draft_key()
    return enrolment_draft(user, key=key)


def identity_confirm(*, request: HttpRequest, user: "User", password: str, code: str) -> None:
    """Check that it is still the person who sits there: the password, and the code of whoever has
    a second factor.

    Whoever has no password has signed in by the provider, and did so a moment ago.

    Raises:
        ConfirmationFailed, SignInLocked, CodeThrottled: the attempt counts as one to sign in.
        SignedInTooLongAgo: by the provider; it counts as nothing.
    """
    if user.has_usable_password():
        password_confirm(request=request, user=user, password=password)
    elif not is_fresh_single_sign_on(request.session):
        raise SignedInTooLongAgo
    if facts_of(user).device_id is None:
        return
    if code_check(request=request, user=user, code=code) is None:
        raise ConfirmationFailed


def password_confirm(*, request: HttpRequest, user: "User", password: str) -> None:
    """Check the password of whoever is signed in; raises ConfirmationFailed, SignInLocked: the
    attempt counts as one to sign in."""
    username = user.get_username()
    lock_check(request=request, username=username)
    if not user.check_password(password):
        failure_count(request=request, username=username, reason="confirmation")
        raise ConfirmationFailed


def two_factor_enrol(
    *, request: HttpRequest, user: "User", password: str, code: str, new_code: str
) -> tuple[str, ...]:
    """Put the secret of the draft in force, in place of an earlier one, and sign out everywhere
    else. Returns the backup codes, to be shown once. ``code`` is of the earlier authenticator.

    Raises:
        CodeWrong: ``new_code`` is not of the draft; what ``identity_confirm`` raises.
    """
    key = request.session.get(_DRAFT_KEY)
    # Looked at first: a slip there must not use up a code of the earlier authenticator.
    if not isinstance(key, str) or not code_is_of(key, code=new_code):
        raise CodeWrong
    identity_confirm(request=request, user=user, password=password, code=code)
    with transaction.atomic():
        had = bool(devices_delete(user))
        device = authenticator_put(user, key=key, code=new_code)
        if device is None:
            raise CodeWrong
        codes = backup_codes_put(user)
        epoch_raise(user=user, keep=request.session)
        event_record(
            action="two_factor.replaced" if had else "two_factor.enrolled",
            actor=person_actor(request, user),
            obj=user,
        )
    request.session.pop(_DRAFT_KEY, None)
    request.session[DEVICE_KEY] = device.pk
    request.session.cycle_key()
    return codes


def two_factor_remove(*, request: HttpRequest, user: "User", password: str, code: str) -> None:
    """Go without a second factor again, and sign out everywhere else.

    Raises:
        Conflict: it is required of this person; what ``identity_confirm`` raises.
    """
    if is_two_factor_required(facts_of(user)):
        raise Conflict("A second factor is required of you; replace it instead.")
    identity_confirm(request=request, user=user, password=password, code=code)
    with transaction.atomic():
        if not devices_delete(user):
            return
        epoch_raise(user=user, keep=request.session)
        event_record(action="two_factor.removed", actor=person_actor(request, user), obj=user)
    request.session.pop(DEVICE_KEY, None)
    request.session.cycle_key()


def backup_codes_renew(
    *, request: HttpRequest, user: "User", password: str, code: str
) -> tuple[str, ...]:
    """Return new backup codes; the old ones are void.

    Raises:
        Conflict: there is no authenticator that they could stand in for; what
            ``identity_confirm`` raises.
    """
    if facts_of(user).device_id is None:
        raise Conflict("Enrol an authenticator first.")
    identity_confirm(request=request, user=user, password=password, code=code)
    with transaction.atomic():
        codes = backup_codes_put(user)
        event_record(action="backup_codes.renewed", actor=person_actor(request, user), obj=user)
    return codes


@transaction.atomic
def two_factor_reset(*, user: "User", actor: Actor) -> bool:
    """Take away the devices of somebody who lost theirs, and sign them out everywhere. Returns
    whether there was one.

    Raises:
        Conflict: it is their own; that takes a password and a code.
    """
    if actor.kind == "user" and actor.id == user.pk:
        raise Conflict("Your own second factor is replaced or removed on your account page.")
    if not devices_delete(user):
        return False
    epoch_raise(user=user, keep=None)
    event_record(action="two_factor.reset", actor=actor, obj=user)
    return True


@transaction.atomic
def two_factor_policy_set(*, user: "User", is_required: bool, actor: Actor) -> None:
    """Require a second factor of a person, or leave it to the platform's setting again."""
    SignInState.objects.get_or_create(user_id=user.pk)
    state = SignInState.objects.select_for_update().get(user_id=user.pk)
    if state.is_two_factor_required == is_required:
        return
    state.is_two_factor_required = is_required
    state.save(update_fields=["is_two_factor_required"])
    facts_refresh(user)
    change_stamp_bump("access")
    event_record(
        action="two_factor.policy_changed",
        actor=actor,
        obj=user,
        changes={"is_required": [not is_required, is_required]},
    )
