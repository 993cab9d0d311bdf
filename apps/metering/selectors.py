"""Reads of the ledger, each answered from an index."""

from datetime import datetime

from django.db.models import Count, Q, Sum

from apps.metering.models import UsageRecord
from apps.metering.types import UsageTotals


def usage_since(since: datetime) -> UsageTotals:
    """Return the totals of requests made since a moment, over every tenant."""
    found = UsageRecord.objects.filter(created_at__gte=since).aggregate(
        n_requests=Count("pk"),
        n_failed=Count("pk", filter=Q(outcome__in=_FAILURES)),
        n_prompt_tokens=Sum("n_prompt_tokens", default=0),
        n_completion_tokens=Sum("n_completion_tokens", default=0),
    )
    return UsageTotals(**found)


def open_reservations() -> int:
    """Return how many rows are reserved and not settled."""
    return UsageRecord.objects.filter(state=UsageRecord.State.RESERVED).count()


_FAILURES = (UsageRecord.Outcome.FAILED, UsageRecord.Outcome.INTERRUPTED)
