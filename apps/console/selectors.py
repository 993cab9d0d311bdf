"""What the overview reads, in a bounded number of queries."""

from typing import Final

from django.core.cache import cache
from django.utils import timezone

from apps.audit.selectors import events_recent
from apps.console.health import by_urgency, deployment_card, overall
from apps.console.types import Dashboard
from apps.deployments.selectors import deployments_with_replicas
from apps.metering.selectors import usage_of_day
from apps.metering.types import UsageTotals
from apps.routing.selectors import route_names_by_deployment

_N_EVENTS: Final = 8
_TOTALS_LIFE_S: Final = 5


def dashboard() -> Dashboard:
    now = timezone.now()
    route_names = route_names_by_deployment()
    cards = by_urgency(
        deployment_card(deployment, route_names=route_names.get(deployment.pk, ()), now=now)
        for deployment in deployments_with_replicas()
    )
    label, tone = overall(cards)
    return Dashboard(
        at=now,
        label=label,
        tone=tone,
        deployments=cards,
        today=_usage_today(),
        n_open=sum(
            engine.n_running + engine.n_waiting for card in cards for engine in card.engines
        ),
        events=tuple(events_recent(limit=_N_EVENTS)),
    )


def _usage_today() -> UsageTotals:
    """Taken once in some seconds for all who look, whose pages renew themselves."""
    totals: UsageTotals | None = cache.get("console.usage_today")
    if totals is None:
        midnight = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
        totals = usage_of_day(midnight)
        cache.set("console.usage_today", totals, _TOTALS_LIFE_S)
    return totals
