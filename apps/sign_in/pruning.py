"""What groups gave people who no longer come: groups are heard of at sign-in alone, and whoever
left the company never signs in again, while their API tokens would go on."""

from datetime import timedelta

from django.conf import settings

from apps.core.pruning import PruneOrder, Pruning, pruning_register, things_prune
from apps.sign_in.selectors import stale_identities
from apps.sign_in.services.single_sign_on import stale_grants_withdraw


def register() -> None:
    pruning_register(
        Pruning(
            name="stale_groups",
            says="people whose groups were not heard of for OIDC_GROUPS_KEEP_DAYS",
            run=_prune,
        )
    )


def _prune(order: PruneOrder) -> int:
    if not settings.OIDC_GROUPS_KEEP_DAYS:
        return 0
    before = order.now - timedelta(days=settings.OIDC_GROUPS_KEEP_DAYS)
    return things_prune(stale_identities(before), order, remove=stale_grants_withdraw)
