"""The rows of requests with an ``Idempotency-Key``: who may run one, and what it answered. Every
function is one or two statements that hold whatever runs at the same time, in whatever process."""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings
from django.db import connection
from django.db.models import QuerySet
from django.utils import timezone

from apps.core.ids import new_id
from apps.core.tenancy import every_tenant
from apps.gateway.exceptions import AnswerNotKept, IdempotencyKeyReused
from apps.gateway.models import IdempotentRequest

State = IdempotentRequest.State

LIFE: Final = timedelta(hours=24)
# Over the request's own deadline, which begins once an engine has prepared it; then a run is dead.
LEASE_GRACE_S: Final = 90.0
# A row is taken over where its day is over, or where its run is dead and this is the same request.
_CLAIM: Final = """
    INSERT INTO gateway_idempotentrequest AS held
        (tenant_id, api_token_id, user_id, key, fingerprint, owner, state, lease_until,
         status, headers, body, created_at, expires_at)
    VALUES (%(tenant_id)s, %(api_token_id)s, %(user_id)s, %(key)s, %(fingerprint)s, %(owner)s,
            'running', %(lease_until)s, NULL, '{}', %(no_body)s, %(now)s, %(expires_at)s)
    ON CONFLICT (tenant_id, api_token_id, user_id, key) DO UPDATE SET
        fingerprint = EXCLUDED.fingerprint, owner = EXCLUDED.owner, state = EXCLUDED.state,
        lease_until = EXCLUDED.lease_until, status = NULL, headers = EXCLUDED.headers,
        body = EXCLUDED.body, created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at
    WHERE held.expires_at <= %(now)s
       OR (held.state = 'running' AND held.lease_until <= %(now)s
           AND held.fingerprint = EXCLUDED.fingerprint)
    RETURNING id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRequest:
    """A key in the hands of whoever sent it, and what was sent with it."""

    tenant_id: int
    api_token_id: int
    user_id: int
    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a request, and to say what came of it."""

    pk: int
    tenant_id: int
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswer:
    """body: None where it was too large to keep."""

    status: int
    headers: dict[str, str]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Running:
    """Somebody else runs it."""


def request_claim(request: NamedRequest) -> Claim | KeptAnswer | Running:
    """Take a request that nobody runs and that has no answer, else say what there is.

    Raises:
        IdempotencyKeyReused: the key names another request.
        AnswerNotKept: it was answered, and the answer was too large.
    """
    now = timezone.now()
    owner = new_id("run")
    lease = timedelta(seconds=settings.GATEWAY_REQUEST_TIMEOUT_S + LEASE_GRACE_S)
    moments = {"now": now, "lease_until": now + lease, "expires_at": now + LIFE}
    adapt = connection.ops.adapt_datetimefield_value
    values = {
        **asdict(request),
        **{name: adapt(moment) for name, moment in moments.items()},
        "owner": owner,
        "no_body": b"",
    }
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM, values)
        row = cursor.fetchone()
    if row is not None:
        return Claim(pk=row[0], tenant_id=request.tenant_id, owner=owner)
    # None: it has just become free, and whoever waits looks again.
    return answer_look(request) or Running()


def answer_look(request: NamedRequest) -> KeptAnswer | Running | None:
    """Return what there is of a request; None where it may be claimed. Raises as
    ``request_claim``."""
    now = timezone.now()
    row = IdempotentRequest.objects.filter(
        tenant_id=request.tenant_id,
        api_token_id=request.api_token_id,
        user_id=request.user_id,
        key=request.key,
        expires_at__gt=now,
    ).first()
    if row is None:
        return None
    if row.fingerprint != request.fingerprint:
        raise IdempotencyKeyReused
    if row.state == State.RUNNING:
        return Running() if row.lease_until > now else None
    if row.state == State.TOO_LARGE:
        raise AnswerNotKept
    return KeptAnswer(status=row.status or 0, headers=row.headers, body=bytes(row.body))


def answer_keep(claim: Claim, answer: KeptAnswer) -> bool:
    """Write what a run answered; False when the run is no longer the one that may."""
    is_kept = answer.body is not None
    n_rows = _run_of(claim).update(
        state=State.KEPT if is_kept else State.TOO_LARGE,
        status=answer.status,
        headers=answer.headers if is_kept else {},
        body=answer.body or b"",
        expires_at=timezone.now() + LIFE,
    )
    return n_rows == 1


def request_release(claim: Claim) -> bool:
    """Forget a run that came to nothing: the next request under its key runs."""
    n_rows, _ = _run_of(claim).delete()
    return n_rows == 1


def _run_of(claim: Claim) -> "QuerySet[IdempotentRequest]":
    return IdempotentRequest.objects.filter(
        pk=claim.pk, tenant_id=claim.tenant_id, owner=claim.owner, state=State.RUNNING
    )


@every_tenant("days end for everybody")
def expired_delete(*, now: datetime, limit: int = 1000) -> int:
    """Drop rows whose day is over, the oldest first; return how many."""
    rows = IdempotentRequest.objects.filter(expires_at__lte=now)
    part = list(rows.order_by("expires_at").values_list("pk", flat=True)[:limit])
    n_rows, _ = rows.filter(pk__in=part).delete() if part else (0, {})
    return n_rows
