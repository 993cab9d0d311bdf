"""Whether a session is fully signed in, which every door that takes one asks here, and from where
somebody tries to sign in."""

import time
from collections.abc import MutableMapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from axes.models import AccessAttempt
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.base import SessionBase
from django.db.models import (
    BooleanField,
    Exists,
    F,
    Max,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    Value,
    Window,
)
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.utils import timezone
from django_otp.plugins.otp_static.models import StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice

from apps.core import addresses
from apps.core.addresses import Address
from apps.sign_in.models import FailedSignIn, ProviderIdentity
from apps.sign_in.types import SignInFacts, Standing

if TYPE_CHECKING:
    from apps.rbac.models import User

# Keys of a session: when it began and was last used (Unix seconds), the person's epoch then, and
# the authenticator whose code it was opened with.
AT_KEY: Final = "sign_in.at"
SEEN_KEY: Final = "sign_in.seen"
EPOCH_KEY: Final = "sign_in.epoch"
DEVICE_KEY: Final = "sign_in.device"
# Of a session that was opened by single sign-on: the provider's token, to sign out there, and
# whether it checked a second factor that counts here.
ID_TOKEN_KEY: Final = "sign_in.id_token"  # noqa: S105 - a key of sessions
PROVIDER_FACTOR_KEY: Final = "sign_in.provider_factor"
_FRESH_S: Final = 300

# Facts read with the user by the backend, so that a request costs no query for them.
_FACTS_ATTRIBUTE: Final = "_sign_in_facts"

Session = SessionBase | MutableMapping[str, Any]
_U = TypeVar("_U", bound=AbstractBaseUser)


def session_standing(*, user: AbstractBaseUser | AnonymousUser, session: Session) -> Standing:
    """The one answer to "is this session fully signed in?", for the admin and every other door.

    Fails closed: a session without the marks that signing in leaves is over.
    """
    if not user.is_authenticated or not user.is_active:
        return Standing.OVER
    facts = facts_of(user)
    began_at, seen_at = session.get(AT_KEY), session.get(SEEN_KEY)
    if began_at is None or seen_at is None or session.get(EPOCH_KEY) != facts.epoch:
        return Standing.OVER
    now = time.time()
    if now - began_at >= settings.SESSION_ABSOLUTE_S or now - seen_at >= settings.SESSION_IDLE_S:
        return Standing.OVER
    if session.get(PROVIDER_FACTOR_KEY):
        return Standing.COMPLETE
    if facts.device_id is not None:
        is_same = session.get(DEVICE_KEY) == facts.device_id
        return Standing.COMPLETE if is_same else Standing.OVER
    return Standing.MUST_ENROL if is_two_factor_required(facts) else Standing.COMPLETE


def is_two_factor_required(facts: SignInFacts) -> bool:
    return facts.is_required or bool(settings.TWO_FACTOR_REQUIRED)


def with_facts(users: QuerySet[_U]) -> QuerySet[_U]:
    """Bring along what ``facts_of`` needs, in the same query."""
    device = TOTPDevice.objects.filter(user=OuterRef("pk"), confirmed=True).order_by("-pk")
    annotated: Any = users.annotate(
        fact_epoch=Coalesce(F("sign_in_state__session_epoch"), 0),
        fact_is_required=Coalesce(
            F("sign_in_state__is_two_factor_required"), Value(False), output_field=BooleanField()
        ),
        fact_device_id=Subquery(device.values("pk")[:1]),
    )
    return annotated  # type: ignore[no-any-return]


def facts_of(user: AbstractBaseUser | AnonymousUser) -> SignInFacts:
    """Return what was read with the user, else read it."""
    known = getattr(user, _FACTS_ATTRIBUTE, None)  # through the lazy user of a request
    return known if isinstance(known, SignInFacts) else facts_refresh(user)


def facts_refresh(user: AbstractBaseUser | AnonymousUser) -> SignInFacts:
    """Read the facts anew, after a service changed them."""
    users: QuerySet[Any] = get_user_model()._default_manager.all()
    return facts_attach(user, with_facts(users).get(pk=user.pk))


def facts_attach(user: Any, row: Any) -> SignInFacts:
    """Keep the facts of an annotated row with ``user``."""
    facts = SignInFacts(
        epoch=row.fact_epoch, device_id=row.fact_device_id, is_required=row.fact_is_required
    )
    setattr(user, _FACTS_ATTRIBUTE, facts)
    return facts


def is_single_sign_on_on() -> bool:
    return bool(settings.OIDC_ISSUER and settings.OIDC_CLIENT_ID and settings.OIDC_CLIENT_SECRET)


def has_identity(user: AbstractBaseUser) -> bool:
    """Whether somebody is known to the single sign-on provider."""
    return ProviderIdentity.objects.filter(user_id=user.pk, issuer=settings.OIDC_ISSUER).exists()


def stale_identities(before: datetime) -> QuerySet[ProviderIdentity]:
    """Return who has something by a group, and was last vouched for before a time."""
    by_group = Q(user__role_grants__mapping__isnull=False) | Q(
        user__memberships__role_grants__mapping__isnull=False
    )
    rows = ProviderIdentity.objects.filter(by_group, seen_at__lt=before)
    return rows.select_related("user").distinct().order_by("pk")


def may_use_password(user: "User") -> bool:
    """Whether a password lets somebody in: not people with single sign-on where that is switched
    off. Superusers keep it, for the day that the provider is away."""
    return (
        not is_single_sign_on_on()
        or settings.OIDC_PASSWORD_SIGN_IN
        or user.is_superuser
        or not has_identity(user)
    )


def is_fresh_single_sign_on(session: Session) -> bool:
    """Whether the provider vouched a moment ago for whoever sits there."""
    return ID_TOKEN_KEY in session and time.time() - session.get(AT_KEY, 0) <= _FRESH_S


def n_backup_codes(user: "User") -> int:
    """How many backup codes are left."""
    codes = StaticToken.objects.filter(device__user_id=user.pk, device__confirmed=True)
    return int(codes.count())


# -- lock-out ----------------------------------------------------------------------------------


def failed_sign_ins() -> QuerySet[FailedSignIn]:
    """Attempts that still count, with what there is of their name and address together."""
    together = [F("username"), F("ip_address")]
    rows: QuerySet[FailedSignIn] = FailedSignIn.objects.filter(attempt_time__gte=_count_from())
    named = get_user_model()._default_manager.filter(username=OuterRef("username"))
    annotated: Any = rows.annotate(
        is_known=Exists(named),
        n_together=Window(Sum("failures_since_start"), partition_by=together),
        last_together=Window(Max("attempt_time"), partition_by=together),
    )
    return annotated  # type: ignore[no-any-return]


def locked_until(*, username: str, address: str | None) -> datetime | None:
    """Return when a name may be tried again from an address; None when it may be tried now."""
    found = AccessAttempt.objects.filter(
        username=username, ip_address=address, attempt_time__gte=_count_from()
    ).aggregate(n=Sum("failures_since_start"), last=Max("attempt_time"))
    if (found["n"] or 0) < settings.AXES_FAILURE_LIMIT:
        return None
    last: datetime = found["last"]
    return last + settings.AXES_COOLOFF_TIME


def _count_from() -> datetime:
    return timezone.now() - settings.AXES_COOLOFF_TIME


# -- where from --------------------------------------------------------------------------------


def client_address(request: HttpRequest) -> str | None:
    """Return where a request comes from, as the doors of programs see it too."""
    address = _address(request)
    return None if address is None else str(address)


def counted_address(request: HttpRequest) -> str | None:
    """Return what failures are counted by; None where it cannot be known."""
    address = _address(request)
    return None if address is None else addresses.counted_as(address)


def _address(request: HttpRequest) -> Address | None:
    return addresses.client_address(
        request.META.get("REMOTE_ADDR"), request.META.get("HTTP_X_FORWARDED_FOR")
    )
