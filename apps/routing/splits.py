"""How a route's requests were shared among its deployments, beside the weights that it has: by the
ledger, since its last change, or a few minutes where that is longer ago."""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Final

from django.db.models import Prefetch

from apps.deployments.selectors import live_state
from apps.deployments.types import LIVE_STATE_TONES
from apps.metering.selectors import route_traffic
from apps.metering.types import RouteTraffic
from apps.routing.models import Route, RouteTarget
from apps.routing.types import RouteSplit, SplitLine

SPAN: Final = timedelta(minutes=5)


def route_splits(route_ids: Collection[int], *, now: datetime) -> list[RouteSplit]:
    """Return the splits of the routes that there are, in at most four queries."""
    targets = RouteTarget.objects.select_related("deployment").prefetch_related(
        "deployment__replicas__engine_process"
    )
    rows = Route.objects.filter(pk__in=route_ids).prefetch_related(
        Prefetch("targets", queryset=targets)
    )
    routes = list(rows)
    since = {route.name: max(route.updated_at, now - SPAN) for route in routes}
    traffic = route_traffic(since)
    return [
        RouteSplit(
            route_id=route.pk,
            name=route.name,
            since=since[route.name],
            lines=split_lines(
                route.targets.all(), [each for each in traffic if each.route_name == route.name]
            ),
        )
        for route in routes
    ]


def split_lines(
    targets: Iterable[RouteTarget], traffic: Iterable[RouteTraffic]
) -> tuple[SplitLine, ...]:
    """Put what was wanted beside what came. The targets come with their deployments and replicas;
    what had requests and is no target any more is left out."""
    had = {each.deployment_id: each for each in traffic}
    targets = list(targets)
    weights = sum(target.weight for target in targets)
    n_all = sum(had[t.deployment_id].n_requests for t in targets if t.deployment_id in had)
    lines = []
    for target in targets:
        own = had.get(target.deployment_id)
        word = live_state(target.deployment).word
        lines.append(
            SplitLine(
                key=f"r{target.route_id}.d{target.deployment_id}",
                deployment_id=target.deployment_id,
                name=target.deployment.name,
                word=word,
                tone=LIVE_STATE_TONES[word],
                weight=target.weight,
                is_fallback=target.fallback_order is not None,
                wanted_percent=100 * target.weight / weights if weights else None,
                got_percent=100 * (own.n_requests if own else 0) / n_all if n_all else None,
                n_requests=own.n_requests if own else 0,
                n_open=own.n_open if own else 0,
                n_failed=own.n_failed if own else 0,
            )
        )
    return tuple(lines)
