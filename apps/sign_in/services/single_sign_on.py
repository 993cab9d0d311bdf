"""Single sign-on: who of the provider's people is who here, what their groups give them, and the
way there and back. A refusal of somebody whom the provider vouches for is in the audit trail; one
of anything else is not, because anybody could fill the trail with it."""

import logging
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.http import HttpRequest
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.exceptions import AppError, Conflict
from apps.rbac.selectors import is_any_group_mapped, permission_names
from apps.rbac.services import mapped_grants_apply, person_create
from apps.sign_in import provider
from apps.sign_in.exceptions import SignInRefused
from apps.sign_in.models import ProviderIdentity
from apps.sign_in.selectors import ID_TOKEN_KEY, client_address, has_identity
from apps.sign_in.services.entry import person_actor, sign_in_start
from apps.sign_in.services.sessions import epoch_raise
from apps.sign_in.types import ProviderFlow, ProviderPerson

if TYPE_CHECKING:
    from apps.rbac.models import User

_log: Final = logging.getLogger(__name__)


def flow_begin(request: HttpRequest, *, redirect_uri: str, flow: ProviderFlow) -> str:
    """Return where the browser is to go. Raises ProviderUnavailable."""
    if not request.user.is_authenticated:
        request.session.set_expiry(provider.FLOW_S)  # nothing of it is worth keeping for longer
    return provider.authorization_url(request, redirect_uri=redirect_uri, flow=flow)


def flow_end(request: HttpRequest) -> tuple[ProviderFlow, ProviderPerson]:
    """Return which flow somebody comes back from, and who they are. Raises as ``flow_finish``."""
    try:
        return provider.flow_finish(request)
    except AppError as error:
        # What it was is for the operator; it may quote the provider, never a token or a secret.
        _log.warning("Single sign-on: %s (%s)", error.code, type(error.__cause__).__name__)
        raise


def single_sign_on(*, request: HttpRequest, person: ProviderPerson) -> bool:
    """Sign in whom the provider vouches for, with what their groups give now. Returns whether it is
    done; else their code is asked for, as after a password.

    Raises:
        SignInRefused: they are nobody here and nothing says that they should be, or they are
            switched off, or nothing lets them in any more: then their sessions are ended.
        Conflict: two first sign-ins at the same moment.
    """
    actor = Actor(kind="system", label="single sign-on", ip_address=client_address(request))
    try:
        with transaction.atomic():
            user = _user_of(person, actor=actor)
            mapped_grants_apply(user=user, groups=person.groups, actor=actor)
            refusal = _refusal(user, person)
            if refusal is not None:  # and what was taken away stays taken away
                epoch_raise(user=user, keep=None)
                _refusal_record(refusal, person, user=user, actor=actor)
    except IntegrityError as error:
        raise Conflict("You signed in twice at the same moment; try again.") from error
    except SignInRefused as error:
        _refusal_record(error, person, user=None, actor=actor)
        raise
    if refusal is not None:
        raise refusal
    return sign_in_start(request=request, user=user, provider=person)


def _refusal_record(
    refusal: SignInRefused, person: ProviderPerson, *, user: "User | None", actor: Actor
) -> None:
    changes = {"reason": refusal.code, "subject": person.subject}
    event_record(action="sign_in.refused", actor=actor, obj=user, changes=changes)


def _user_of(person: ProviderPerson, *, actor: Actor) -> "User":
    """Return the user that a subject is, a new one where that is allowed."""
    identity = (
        ProviderIdentity.objects.select_related("user")
        .filter(issuer=person.issuer, subject=person.subject)
        .first()
    )
    if identity is not None:
        identity.seen_at = timezone.now()
        identity.save(update_fields=["seen_at", "updated_at"])
        return identity.user
    if not _is_admitted(person):
        raise SignInRefused(
            "You have no account here, and are in no group that gives you one. "
            "Ask an administrator.",
            code="not_admitted",
        )
    try:
        user = person_create(username=person.name, email=person.email, actor=actor)
    except Conflict as error:
        raise SignInRefused(
            f"There is an account {person.name} here already. If it is yours, sign in by its "
            "password and connect single sign-on under My account; else ask an administrator.",
            code="name_taken",
        ) from error
    except ValidationError as error:
        raise SignInRefused(
            "What the provider calls you cannot be a name here. Ask an administrator.",
            code="name_unusable",
        ) from error
    _identity_put(user, person, actor=actor)
    return user


def _is_admitted(person: ProviderPerson) -> bool:
    _, _, domain = person.email.rpartition("@")
    return domain.lower() in settings.OIDC_ALLOWED_DOMAINS or is_any_group_mapped(person.groups)


def _refusal(user: "User", person: ProviderPerson) -> SignInRefused | None:
    if not user.is_active or not user.is_staff or user.is_service:
        return SignInRefused("Your account here is switched off.", code="switched_off")
    if user.is_superuser or permission_names(user) or _is_admitted(person):
        return None
    return SignInRefused(
        "None of your groups gives you access any more. Ask an administrator.", code="not_admitted"
    )


def identity_link(*, request: HttpRequest, user: "User", person: ProviderPerson) -> None:
    """Make a signed-in person the one that the provider vouches for.

    Raises:
        SignInRefused: that one is somebody else here, or the person is another one there.
    """
    if has_identity(user):
        raise SignInRefused("Your account is connected already.", code="already_linked")
    try:
        with transaction.atomic():
            _identity_put(user, person, actor=person_actor(request, user))
    except IntegrityError as error:
        raise SignInRefused(
            "Whoever you are there has another account here.", code="already_linked"
        ) from error


def _identity_put(user: "User", person: ProviderPerson, *, actor: Actor) -> None:
    ProviderIdentity.objects.create(user=user, issuer=person.issuer, subject=person.subject)
    event_record(
        action="sign_in.identity_linked",
        actor=actor,
        obj=user,
        changes={"issuer": person.issuer, "subject": person.subject},
    )


@transaction.atomic
def identity_remove(*, user: "User", actor: Actor) -> bool:
    """Forget who somebody is at the provider, with what their groups gave, and sign them out
    everywhere. Returns whether there was anything to forget."""
    identities = ProviderIdentity.objects.filter(user_id=user.pk)
    subjects = list(identities.values_list("subject", flat=True))
    if not subjects:
        return False
    identities.delete()
    mapped_grants_apply(user=user, groups=(), actor=actor)
    epoch_raise(user=user, keep=None)
    event_record(
        action="sign_in.identity_removed", actor=actor, obj=user, changes={"subjects": subjects}
    )
    return True


@transaction.atomic
def stale_grants_withdraw(identity: ProviderIdentity) -> None:
    """Take away what groups gave somebody of whom the provider has long said nothing. Their next
    sign-in gives it anew."""
    actor = Actor(kind="system", label="single sign-on")
    mapped_grants_apply(user=identity.user, groups=(), actor=actor)


def provider_logout_url(request: HttpRequest, *, back_to: str) -> str | None:
    """Return where whoever came by the provider signs out there too; None for everybody else."""
    id_token = request.session.get(ID_TOKEN_KEY)
    return None if id_token is None else provider.logout_url(id_token=id_token, back_to=back_to)


def provider_sign_out(*, request: HttpRequest, logout_token: str) -> None:
    """The provider says that somebody signed out, or was thrown out: end their sessions here.

    Raises:
        SignInRefused, ProviderUnavailable: as ``provider.logout_subject``.
    """
    subject = provider.logout_subject(logout_token)
    people: Any = get_user_model()._default_manager
    with transaction.atomic():
        user = people.filter(
            provider_identities__issuer=settings.OIDC_ISSUER,
            provider_identities__subject=subject,
        ).first()
        if user is None:
            return
        epoch_raise(user=user, keep=None)
        event_record(
            action="sign_in.provider_signed_out",
            actor=Actor(kind="system", label="single sign-on", ip_address=client_address(request)),
            obj=user,
        )
