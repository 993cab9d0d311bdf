"""Writes of API tokens."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.addresses import Network
from apps.core.exceptions import Conflict, InvalidRequest, PermissionDenied
from apps.core.limits import LIMIT_NAMES, Limits
from apps.core.services import change_stamp_bump, model_changes, plain
from apps.core.tenancy import every_tenant
from apps.rbac.models import ApiToken, User
from apps.rbac.permissions import access_of, access_within
from apps.rbac.powers import may_no_more
from apps.rbac.selectors import TOUCH_EVERY, secret_digest
from apps.rbac.types import (
    ADD_TOKEN,
    DEFAULT_SCOPES,
    OWNED_SCOPES,
    SECRET_MARK,
    IssuedToken,
    networks_of,
    scope_permissions,
)

if TYPE_CHECKING:
    from apps.tenants.models import Tenant

# Enough to tell tokens apart in a list (collisions are refused by the unique constraint and drawn
# again), too little to guess the remaining 220 bits.
_PREFIX_CHARS = 14
_EDITABLE = ("name", "scopes", "allowed_networks", "expires_at")
MAX_OVERLAP = timedelta(days=30)


@transaction.atomic
def api_token_issue(
    *,
    tenant: Tenant,
    name: str,
    actor: Actor,
    created_by: User | None = None,
    owner: User | None = None,
    scopes: Sequence[str] = DEFAULT_SCOPES,
    expires_at: datetime | None = None,
    **fields: Any,
) -> IssuedToken:
    """Make a token. Its secret is in what is returned and nowhere else.

    created_by: the person who asks for it; None where the platform does. owner: whose token it is,
    and whose power it never exceeds; None makes it the tenant's own. fields: others of the model's,
    such as limits of its own.

    Raises:
        PermissionDenied: it would do more than ``created_by`` may.
        InvalidRequest: ``param`` names the field.
    """
    if expires_at is not None and expires_at <= timezone.now():
        raise InvalidRequest("The time of expiry lies in the past.", param="expires_at")
    _check_owner(owner, scopes=scopes, tenant_id=tenant.pk)
    if created_by is not None:
        _check_creator(created_by, owner=owner, scopes=scopes, tenant_id=tenant.pk)
    secret = _secret_draw()
    token = ApiToken(
        tenant=tenant,
        name=name,
        prefix=secret[:_PREFIX_CHARS],
        digest=secret_digest(secret),
        created_by=created_by,
        owner=owner,
        scopes=list(scopes),
        expires_at=expires_at,
        **fields,
    )
    token.full_clean()
    token.save()
    event_record(
        action="api_token.issued",
        actor=actor,
        obj=token,
        tenant_id=tenant.pk,
        changes={
            "name": name,
            "owner": owner.get_username() if owner else None,
            "scopes": list(scopes),
            "expires_at": expires_at.isoformat() if expires_at else None,
            **{key: plain(value) for key, value in fields.items() if value not in (None, "")},
        },
    )
    change_stamp_bump("access")
    return IssuedToken(token=token, secret=secret)


def _check_owner(owner: User | None, *, scopes: Sequence[str], tenant_id: int) -> None:
    """Refuse an owner who could use the token nowhere, or who is not of the tenant, and none where
    the scopes say nothing but that it may what its owner may."""
    if owner is None:
        if owned := sorted(OWNED_SCOPES.intersection(scopes)):
            raise InvalidRequest(
                f"A token for {owned[0]!r} belongs to a person or a service account.",
                param="owner",
            )
        return
    if not owner.is_active:
        raise InvalidRequest("This user is switched off.", param="owner")
    if not owner.memberships.filter(tenant_id=tenant_id).exists():
        raise InvalidRequest("The owner is no member of this tenant.", param="owner")


def _check_creator(
    creator: User, *, owner: User | None, scopes: Sequence[str], tenant_id: int
) -> None:
    """Raise PermissionDenied where a token would do what its creator may not."""
    access = creator.access
    if not access.may(ADD_TOKEN, tenant_id=tenant_id):
        raise PermissionDenied("You may not issue tokens of this tenant.")
    if not access.covers(scope_permissions(scopes), tenant_id=tenant_id):
        raise PermissionDenied("You cannot issue a token for what you may not do yourself.")
    if owner is None and not access.may(ADD_TOKEN):
        raise PermissionDenied(
            "Only who may issue tokens everywhere can issue one that belongs to the tenant itself."
        )
    if owner is not None and owner.pk != creator.pk:
        if not (owner.is_service or access.may(ADD_TOKEN)):
            raise PermissionDenied("A token of yours belongs to you or to a service account.")
        is_more = not access.covers(access_within(access_of(owner), tenant_id), tenant_id=tenant_id)
        if is_more or (OWNED_SCOPES.intersection(scopes) and not may_no_more(owner, than=creator)):
            raise PermissionDenied("The owner may do more than you.")


def api_token_lend_check(*, token: ApiToken, scopes: Sequence[str], by: User) -> None:
    """Raise PermissionDenied unless ``by`` could issue a token like this one for these scopes: who
    has the platform act by somebody's token spends as if it were theirs."""
    _check_creator(by, owner=token.owner, scopes=scopes, tenant_id=token.tenant_id)


@transaction.atomic
def api_token_rotate(
    *, token: ApiToken, overlap: timedelta, actor: Actor, rotated_by: User | None = None
) -> IssuedToken:
    """Make a token like ``token``, which is good for ``overlap`` longer and then expires.

    Raises:
        PermissionDenied: as ``api_token_issue``.
        Conflict: it is not in force, or was rotated before.
        InvalidRequest: the overlap is negative or over 30 days.
    """
    if not timedelta(0) <= overlap <= MAX_OVERLAP:
        raise InvalidRequest(f"At most {MAX_OVERLAP.days} days.", param="overlap")
    stored = (
        ApiToken.objects.select_for_update(of=("self",))
        .select_related("tenant", "owner")
        .get(pk=token.pk, tenant_id=token.tenant_id)
    )
    if not stored.is_live:
        raise Conflict("This token is not in force.")
    if stored.replacements.filter(tenant_id=stored.tenant_id).exists():
        raise Conflict("This token was rotated before.")
    lifetime = stored.expires_at - stored.created_at if stored.expires_at else None
    issued = api_token_issue(
        tenant=stored.tenant,
        name=stored.name,
        actor=actor,
        created_by=rotated_by,
        owner=stored.owner,
        scopes=stored.scopes,
        expires_at=timezone.now() + lifetime if lifetime else None,
        allowed_networks=stored.allowed_networks,
        replaces=stored,
        **{name: getattr(stored, name) for name in LIMIT_NAMES},
    )
    ends_at = timezone.now() + overlap
    if stored.expires_at is None or stored.expires_at > ends_at:
        stored.expires_at = ends_at
        stored.save(update_fields=["expires_at", "updated_at"])
    event_record(
        action="api_token.rotated",
        actor=actor,
        obj=stored,
        tenant_id=stored.tenant_id,
        changes={"replaced_by": issued.token.prefix, "expires_at": plain(stored.expires_at)},
    )
    return issued


@every_tenant("what is unique is unique among all tenants")
def _secret_draw() -> str:
    while True:
        secret = SECRET_MARK + secrets.token_urlsafe(32)
        if not ApiToken.objects.filter(prefix=secret[:_PREFIX_CHARS]).exists():
            return secret


@transaction.atomic
def api_token_update(*, token: ApiToken, actor: Actor, by: User | None = None) -> ApiToken:
    """Save the name, the scopes, the networks, the time of expiry and the limits that ``token``
    carries. by: the person who asks; None where the platform does.

    Raises:
        PermissionDenied: it would do more than before, or longer, and ``by`` could not issue it.
        InvalidRequest: ``param`` names the field.
    """
    stored = (
        ApiToken.objects.of_tenants(None)
        .select_for_update(of=("self",))
        .select_related("owner")
        .get(pk=token.pk)
    )
    if stored.tenant_id != token.tenant_id:
        raise InvalidRequest("A token stays with its tenant.", param="tenant")
    if stored.owner_id != token.owner_id:
        raise InvalidRequest("A token stays with its owner.", param="owner")
    changes = model_changes(obj=token, stored=stored)
    if not changes:
        return token
    token.full_clean()
    if stored.owner is None:
        _check_owner(None, scopes=token.scopes, tenant_id=stored.tenant_id)
    if by is not None and _is_wider(token, stored):
        _check_creator(by, owner=stored.owner, scopes=token.scopes, tenant_id=token.tenant_id)
    token.save(update_fields=[*_EDITABLE, *LIMIT_NAMES, "updated_at"])
    event_record(
        action="api_token.updated",
        actor=actor,
        obj=token,
        tenant_id=token.tenant_id,
        changes=changes,
    )
    change_stamp_bump("access")
    return token


def _is_wider(token: ApiToken, stored: ApiToken) -> bool:
    """Return whether a changed token is good for more, from more places or for longer: then it is
    as if it were issued anew."""
    if set(token.scopes) - set(stored.scopes):
        return True
    ends, ended = token.expires_at, stored.expires_at
    if ended is not None and (ends is None or ends > ended):
        return True
    before, after = networks_of(stored.allowed_networks), networks_of(token.allowed_networks)
    if before and not (after and all(_is_inside(each, before) for each in after)):
        return True
    return Limits.of(token).is_wider_than(Limits.of(stored))


def _is_inside(network: Network, others: Sequence[Network]) -> bool:
    return any(
        network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]
        for other in others
    )


@transaction.atomic
def api_token_revoke(*, token: ApiToken, actor: Actor) -> ApiToken:
    """Refuse the token from now on, for ever. Revoking it twice changes nothing."""
    stored = ApiToken.objects.select_for_update().get(pk=token.pk, tenant_id=token.tenant_id)
    if stored.revoked_at is not None:
        return stored
    stored.revoked_at = timezone.now()
    stored.save(update_fields=["revoked_at", "updated_at"])
    event_record(action="api_token.revoked", actor=actor, obj=stored, tenant_id=stored.tenant_id)
    change_stamp_bump("access")
    return stored


@every_tenant("a note about a token that was just checked")
def api_token_touch(token_id: int) -> None:
    """Note that the token is in use, at most once in ``TOUCH_EVERY``: a list needs no more."""
    now = timezone.now()
    ApiToken.objects.filter(
        Q(last_used_at=None) | Q(last_used_at__lt=now - TOUCH_EVERY), pk=token_id
    ).update(last_used_at=now)
