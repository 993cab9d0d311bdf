"""From the limits of scopes to claims on meters, and from what the meters say to a grant or to a
refusal that is true: who ran out of what, and when there will be more."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from apps.metering import meters
from apps.metering.exceptions import BudgetHeld, LimitExceeded, QuotaExceeded, TooManyConcurrent
from apps.metering.meters import OPEN, Held, Reading, Want
from apps.metering.types import Budget, Grant, Reservation, Scope

Hold = Callable[[Sequence[Want]], Held | tuple[Reading, ...]]

_SOON_S: Final = 1.0  # when something that is held may be free again


def reserve(reservation: Reservation, *, now: datetime, hold: Hold = meters.hold) -> Grant:
    """Hold tokens, and a place among the open requests, of every scope.

    Raises:
        TooManyConcurrent, BudgetHeld: may be free again in a second.
        QuotaExceeded: a day's or a month's tokens are used up.
    """
    wants = wants_of(reservation, now=now)
    if not wants:
        return Grant(n_tokens=reservation.n_reserved_tokens)
    found = hold(wants)
    if not isinstance(found, Held):
        raise _refusal(wants, readings=found, scopes=reservation.scopes, now=now)
    by_key = {(reading.scope, reading.period): reading for reading in found.readings}
    budgets = [
        _budget(want, reading=by_key[want.scope, want.period], now=now)
        for want in wants
        if want.cap is not None and want.period != OPEN
    ]
    return Grant(
        n_tokens=found.n_tokens,
        meter_ids=tuple(reading.id for reading in found.readings),
        budget=min(budgets, key=lambda each: each.n_left, default=None),
    )


def wants_of(reservation: Reservation, *, now: datetime) -> list[Want]:
    """Return all that a request claims of meters."""
    return [
        want for scope in reservation.scopes for want in _wants(reservation, scope=scope, now=now)
    ]


def _wants(reservation: Reservation, *, scope: Scope, now: datetime) -> Iterator[Want]:
    limits = scope.limits
    least, most = reservation.n_least_tokens, reservation.n_reserved_tokens
    for period, cap in (
        (f"{now:%Y-%m-%d}", limits.tokens_per_day),
        (f"{now:%Y-%m}", limits.tokens_per_month),
    ):
        yield Want(scope=scope.key, period=period, cap=cap, least=least, most=most)
    if reservation.is_open and limits.max_concurrent_requests is not None:
        yield Want(
            scope=scope.key, period=OPEN, cap=limits.max_concurrent_requests, least=1, most=1
        )


def _budget(want: Want, *, reading: Reading, now: datetime) -> Budget:
    assert want.cap is not None
    return Budget(
        limit=want.cap,
        n_left=max(0, want.cap - reading.n_used - reading.n_held),
        resets_in_s=seconds_left(want.period, now=now),
    )


def _refusal(
    wants: Sequence[Want], *, readings: Sequence[Reading], scopes: Sequence[Scope], now: datetime
) -> LimitExceeded:
    """Return the refusal of the meter that will be wanting longest."""
    by_key = {(reading.scope, reading.period): reading for reading in readings}
    said = {scope.key: scope.said for scope in scopes}
    found: list[LimitExceeded] = []
    for want in wants:
        reading = by_key.get((want.scope, want.period))
        if want.cap is None or reading is None:
            continue
        if want.cap - reading.n_used - reading.n_held >= want.least:
            continue
        found.append(_error(want, reading=reading, who=said[want.scope], now=now))
    # None: it was free again by the time the meters were read.
    return max(
        found,
        key=lambda error: error.retry_after_s or 0.0,
        default=BudgetHeld("The limits changed meanwhile; try again.", retry_after_s=_SOON_S),
    )


def _error(want: Want, *, reading: Reading, who: str, now: datetime) -> LimitExceeded:
    assert want.cap is not None
    if want.period == OPEN:
        return TooManyConcurrent(
            f"{who} has {reading.n_held} requests running, of {want.cap} at a time.",
            retry_after_s=_SOON_S,
        )
    span = "this month" if len(want.period) == len("2026-01") else "today"
    n_unused = max(0, want.cap - reading.n_used)
    budget = _budget(want, reading=reading, now=now)
    if n_unused >= want.least:
        return BudgetHeld(
            f"{who} has {n_unused} of {want.cap} tokens left {span}; requests that still run hold "
            f"{reading.n_held} of them, and this one needs {want.least}.",
            retry_after_s=_SOON_S,
            budget=budget,
        )
    return QuotaExceeded(
        f"{who} has {n_unused} of {want.cap} tokens left {span}, and this request needs "
        f"{want.least}.",
        retry_after_s=budget.resets_in_s,
        budget=budget,
    )


def seconds_left(period: str, *, now: datetime) -> float:
    """Return how long a day or a month, such as ``2026-11-26`` or ``2026-11``, still lasts."""
    start = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if len(period) == len("2026-01"):
        end = (start.replace(day=1) + timedelta(days=32)).replace(day=1)
    else:
        end = start + timedelta(days=1)
    return (end - now).total_seconds()
