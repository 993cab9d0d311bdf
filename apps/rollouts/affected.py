"""Who a rollout will be felt by, and how long its steps take, by the requests of the last hours."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from apps.metering.selectors import route_requests
from apps.rollouts.types import StepSpec
from apps.tenants.selectors import tenant_names

_SHOWN: Final = 12
_HOUR: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AffectedTenant:
    name: str
    n_hour: int
    n_day: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Affected:
    """since_hour: when the last whole hour began, from which ``n_hour`` counts up to now; n_day is
    of 24 hours more. per_hour: the rate since then. n_more: tenants that are not named."""

    since_hour: datetime
    n_hour: int
    n_day: int
    per_hour: float
    tenants: tuple[AffectedTenant, ...]
    n_more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepForecast:
    """per_hour: requests that the candidate would get. minutes: how long the step takes at least at
    that rate; None: it never gets its requests."""

    spec: StepSpec
    per_hour: float
    minutes: float | None

    @property
    def per_hour_said(self) -> str:
        if 0 < self.per_hour < 10:
            return f"{self.per_hour:.1f}"
        return f"{self.per_hour:,.0f}"

    @property
    def said(self) -> str:
        if self.minutes is None:
            return "never, without requests"
        return minutes_said(self.minutes)


def affected_of(route_name: str, *, within: Collection[int] | None, now: datetime) -> Affected:
    """within: tenants that may be seen; None is all. Two queries."""
    since = now.replace(minute=0, second=0, microsecond=0) - _HOUR
    rows = route_requests(route_name, hour=since, day=since - 24 * _HOUR, within=within)
    names = tenant_names({each.tenant_id for each in rows[:_SHOWN]})
    n_hour = sum(each.n_hour for each in rows)
    return Affected(
        since_hour=since,
        n_hour=n_hour,
        n_day=sum(each.n_day for each in rows),
        per_hour=n_hour * (_HOUR / (now - since)),
        tenants=tuple(
            AffectedTenant(
                name=names.get(each.tenant_id, "(gone)"), n_hour=each.n_hour, n_day=each.n_day
            )
            for each in rows[:_SHOWN]
        ),
        n_more=max(len(rows) - _SHOWN, 0),
    )


def steps_forecast(
    steps: Sequence[StepSpec], *, per_hour: float, share: float
) -> tuple[StepForecast, ...]:
    """per_hour: requests of the route. share: of them, what baseline and candidate get together,
    0 to 1."""
    return tuple(_forecast(step, per_hour * share * step.percent / 100) for step in steps)


def _forecast(step: StepSpec, rate: float) -> StepForecast:
    minutes: float | None = step.min_minutes
    if step.min_requests:
        minutes = max(step.min_minutes, 60 * step.min_requests / rate) if rate else None
    return StepForecast(spec=step, per_hour=rate, minutes=minutes)


def together_said(forecasts: Sequence[StepForecast]) -> str:
    """Say when the last step is reached at the earliest."""
    before = [each.minutes for each in forecasts[:-1]]
    known = [each for each in before if each is not None]
    if len(known) < len(before):
        return "Without requests it does not get past its first step."
    return (
        f"At this rate it is at {forecasts[-1].spec.percent:g} % after {minutes_said(sum(known))}."
    )


def minutes_said(minutes: float) -> str:
    if minutes < 1:
        return "at once" if minutes == 0 else f"{60 * minutes:.0f} s"
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 60 * 48 else f"{minutes / 60 / 24:.0f} days"
