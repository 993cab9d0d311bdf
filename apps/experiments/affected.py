"""Of whom an experiment would be, by what its route had in the last day; and how long it would
take to find what it is to find."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from apps.core.limits import UNLIMITED
from apps.experiments.metrics import Metric
from apps.experiments.types import Caller, Eligibility
from apps.metering.selectors import route_requests_newest
from apps.metering.types import ObservedRequest
from apps.rbac.types import Principal
from apps.statistics.moments import Moments
from apps.statistics.planning import baseline, units_needed
from apps.tenants.selectors import tenants_among

SPAN: Final = timedelta(days=1)
# Of the newest requests of the route so many are looked at.
MOST_REQUESTS: Final = 5_000
_TENANTS_SHOWN: Final = 8

Subject = tuple[int, str]  # a tenant, and the name of one whom it serves or of its token


@dataclass(frozen=True, slots=True, kw_only=True)
class AffectedTenant:
    name: str
    n_requests: int
    n_subjects: int
    n_eligible: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Affected:
    """since: of the oldest request that was looked at, or a day ago. is_cut: there were more
    requests than are looked at. n_nameless: requests that name no subject. is_unknowable: the
    ledger does not keep what subjects are (conversations). units: eligible subjects' requests.
    """

    since: datetime
    now: datetime
    is_cut: bool
    is_unknowable: bool
    n_requests: int
    n_nameless: int
    n_subjects: int
    n_eligible: int
    tenants: tuple[AffectedTenant, ...]
    n_more: int
    units: Mapping[Subject, Sequence[ObservedRequest]]

    def per_day(self, *, share_percent: float) -> float:
        """Return how many subjects would take part in a day, were they all new."""
        span = max(self.now - self.since, timedelta(minutes=1)) if self.is_cut else SPAN
        return self.n_eligible * (share_percent / 100) * (SPAN / span)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """n_subjects: in all arms together; None where nothing is known to compute it from. days: at
    the present rate; None where nobody comes."""

    n_subjects: int | None
    days: float | None
    said: str


def affected_of(
    route_name: str, *, subject: str, eligibility: Eligibility, now: datetime
) -> Affected:
    """Two queries, of bounded size."""
    found = route_requests_newest(route_name, since=now - SPAN, limit=MOST_REQUESTS)
    is_cut = len(found) == MOST_REQUESTS
    tenants = {each.pk: each for each in tenants_among(ids={r.tenant_id for r in found})}
    seen: defaultdict[int, set[Subject]] = defaultdict(set)
    units: defaultdict[Subject, list[ObservedRequest]] = defaultdict(list)
    n_of: defaultdict[int, int] = defaultdict(int)
    n_nameless = 0
    for request in found:
        n_of[request.tenant_id] += 1
        tenant = tenants.get(request.tenant_id)
        caller = _caller(request, slug="" if tenant is None else tenant.slug)
        name = caller.subject(subject)  # type: ignore[arg-type]
        if not name:
            n_nameless += 1
            continue
        key = (request.tenant_id, name)
        seen[request.tenant_id].add(key)
        if eligibility.admits(caller):
            units[key].append(request)
    order = sorted(n_of, key=lambda pk: (-n_of[pk], pk))
    return Affected(
        since=found[-1].created_at if is_cut else now - SPAN,
        now=now,
        is_cut=is_cut,
        is_unknowable=subject == "conversation",
        n_requests=len(found),
        n_nameless=n_nameless,
        n_subjects=sum(map(len, seen.values())),
        n_eligible=len(units),
        tenants=tuple(
            AffectedTenant(
                name=tenants[pk].name if pk in tenants else f"#{pk}",
                n_requests=n_of[pk],
                n_subjects=len(seen[pk]),
                n_eligible=sum(key in units for key in seen[pk]),
            )
            for pk in order[:_TENANTS_SHOWN]
        ),
        n_more=max(len(order) - _TENANTS_SHOWN, 0),
        units=units,
    )


def planned_of(
    affected: Affected,
    *,
    metric: Metric,
    effect: float,
    weights: Sequence[int],
    alpha: float,
    power: float,
    share_percent: float,
    typed: int | None = None,
) -> Planned:
    """Return how many subjects find the effect, and how long that takes. weights: of the arms, the
    control's first. typed: the number that somebody wants instead."""
    per_day = affected.per_day(share_percent=share_percent)
    n_subjects = typed or _needed(affected, metric, effect, weights, alpha=alpha, power=power)
    if n_subjects is None:
        why = f"The route's last day does not say how {metric.label.lower()} spreads: not computed."
        return Planned(n_subjects=None, days=None, said=why)
    if per_day <= 0:
        return Planned(n_subjects=n_subjects, days=None, said="Nobody came who would take part.")
    days = n_subjects / per_day
    return Planned(n_subjects=n_subjects, days=days, said=f"About {days_said(days)}.")


def days_said(days: float) -> str:
    if days < 1 / 24:
        return "less than an hour"
    if days < 2:
        hours = round(24 * days)
        return f"{hours} hour{'' if hours == 1 else 's'}"
    return f"{days:,.0f} days"


def _needed(
    affected: Affected,
    metric: Metric,
    effect: float,
    weights: Sequence[int],
    *,
    alpha: float,
    power: float,
) -> int | None:
    """Each arm is compared with the control at its part of the false alarms; the smallest arm takes
    longest."""
    if metric.of_request is None or len(weights) < 2:
        return None
    expected = baseline(_moments(affected, metric), metric.kind)
    if expected is None:
        return None
    shares = (weights[0] / sum(weights), min(weights[1:]) / sum(weights))
    signed = effect if metric.better == "higher" else -min(effect, 0.99)
    try:
        plan = units_needed(
            expected,
            kind=metric.kind,
            effect=signed,
            shares=shares,
            alpha=alpha / (len(weights) - 1),
            power=power,
        )
    except ValueError:
        return None
    return plan.arriving


def _moments(affected: Affected, metric: Metric) -> Moments:
    """Sum the eligible subjects, each as one unit."""
    whole = Moments()
    for requests in affected.units.values():
        y = x = 0
        for request in requests:
            assert metric.of_request is not None
            if (pair := metric.of_request(request)) is not None:
                y, x = y + pair[0], x + pair[1]
        x = 1 if metric.is_per_subject else x
        if x:
            whole += Moments.of(y, x)
    return whole


def _caller(request: ObservedRequest, *, slug: str) -> Caller:
    """Return who asked, as far as conditions look at it."""
    principal = Principal(
        tenant_id=request.tenant_id,
        tenant_slug=slug,
        cache_salt="",
        label="",
        limits=UNLIMITED,
        api_token_id=request.api_token_id,
    )
    return Caller(principal=principal, door=request.door, end_user=request.end_user)
