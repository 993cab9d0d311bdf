"""Forgetting one whom a tenant serves, in every room that keeps what they wrote."""

from dataclasses import dataclass

from django.db import transaction

from apps.audit.types import Actor
from apps.core.exceptions import NotFound
from apps.feedback.services import end_user_erase
from apps.judging.services import samples_erase
from apps.tenants.selectors import tenant_by_slug


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """n_events: what was said of answers, whose numbers stay. n_samples: answers that waited for a
    judge, which are gone."""

    n_events: int
    n_samples: int


@transaction.atomic
def person_erase(*, tenant_slug: str, end_user: str, actor: Actor) -> Erased:
    """Forget what one whom a tenant serves wrote, and that it was them, with one audit event, which
    does not say whom.

    The answers that wait go first: a worker that has one in its hands then writes no score of it.

    Raises:
        NotFound: there is no such tenant.
    """
    tenant = tenant_by_slug(tenant_slug)
    if tenant is None:
        raise NotFound(f"There is no tenant {tenant_slug!r}.")
    n_samples = samples_erase(tenant_id=tenant.pk, end_user=end_user.replace("\0", "\ufffd"))
    n_events = end_user_erase(
        tenant=tenant, end_user=end_user, actor=actor, also={"n_samples": n_samples}
    )
    return Erased(n_events=n_events, n_samples=n_samples)
