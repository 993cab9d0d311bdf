"""The meters of many requests at once: locked, moved in memory one request after another, and
written by one statement. What is granted and refused is what ``meters`` would say to each alone."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from django.db import connection

from apps.metering.meters import OPEN, Held, Reading, Want, lock

_NO_ROOM: Final = 2**62  # a meter without a cap always has as much left


class MissingMeters(Exception):
    """They are to be made in a transaction of their own: who makes one may wait for another who
    does, and must not hold what that one waits for. keys: scopes and periods."""

    def __init__(self, keys: Collection[tuple[str, str]]) -> None:
        super().__init__(f"{len(keys)} meters are missing")
        self.keys = keys


class _Meter:
    __slots__ = ("id", "is_moved", "n_held", "n_used", "period", "scope")

    def __init__(self, row: Sequence[Any]) -> None:
        self.id, self.scope, self.period, self.n_used, self.n_held = row
        self.is_moved = False

    def move(self, *, n_used: int, n_held: int) -> None:
        self.n_used += n_used
        self.n_held += n_held
        self.is_moved = True

    def room(self, want: Want) -> int:
        return _NO_ROOM if want.cap is None else want.cap - self.n_used - self.n_held

    @property
    def reading(self) -> Reading:
        return Reading(
            id=self.id, scope=self.scope, period=self.period, n_used=self.n_used, n_held=self.n_held
        )


class LockedMeters:
    """Made, used and saved within one transaction, which holds their rows until it ends.

    wants: of all that will be held. meter_ids: of all that will be given back.

    Raises:
        MissingMeters: some that are wanted have never moved.
    """

    def __init__(self, *, wants: Iterable[Want], meter_ids: Collection[int]) -> None:
        keys = sorted({(want.scope, want.period) for want in wants})
        found = _locked(keys, meter_ids)
        if missing := set(keys) - {(meter.scope, meter.period) for meter in found}:
            raise MissingMeters(missing)
        self._by_id = {meter.id: meter for meter in found}
        self._by_key = {(meter.scope, meter.period): meter for meter in found}

    def hold(self, wants: Sequence[Want]) -> Held | tuple[Reading, ...]:
        """Hold on every meter as much as the emptiest of them can give, or on none; as
        ``meters.hold``."""
        mine = [(want, self._by_key[want.scope, want.period]) for want in wants]
        if any(meter.room(want) < want.least for want, meter in mine):
            return tuple(meter.reading for _, meter in mine)
        n_tokens = min(
            (min(want.most, meter.room(want)) for want, meter in mine if want.period != OPEN),
            default=0,
        )
        for want, meter in mine:
            meter.move(n_used=0, n_held=1 if want.period == OPEN else n_tokens)
        meters = sorted((meter for _, meter in mine), key=lambda meter: meter.id)
        return Held(n_tokens=n_tokens, readings=tuple(meter.reading for meter in meters))

    def give_back(self, *, meter_ids: Iterable[int], n_held: int, n_used: int) -> None:
        """Turn what was held into what was used; a meter that was pruned is left out."""
        for meter in filter(None, map(self._by_id.get, meter_ids)):
            if meter.period == OPEN:
                meter.move(n_used=0, n_held=-1)
            else:
                meter.move(n_used=n_used, n_held=-n_held)

    def save(self) -> None:
        moved = [meter for meter in self._by_id.values() if meter.is_moved]
        if not moved:
            return
        mark = "(CAST(%s AS bigint), CAST(%s AS bigint), CAST(%s AS bigint))"
        with connection.cursor() as cursor:
            cursor.execute(
                f"""
                WITH moved (id, n_used, n_held) AS (VALUES {", ".join([mark] * len(moved))})
                UPDATE metering_meter SET n_used = moved.n_used, n_held = moved.n_held
                FROM moved WHERE metering_meter.id = moved.id
                """,  # noqa: S608 - only marks are put in
                [value for each in moved for value in (each.id, each.n_used, each.n_held)],
            )


def _locked(keys: Sequence[tuple[str, str]], meter_ids: Collection[int]) -> list[_Meter]:
    """Lock rows in the order of their ids, as all do that lock some."""
    choices: list[str] = []
    values: list[str | int] = []
    if keys:
        marks = ", ".join(["(%s, %s)"] * len(keys))
        choices.append(f"SELECT id FROM metering_meter WHERE (scope, period) IN (VALUES {marks})")  # noqa: S608
        values += [text for key in keys for text in key]
    if meter_ids:
        marks = ", ".join(["%s"] * len(meter_ids))
        choices.append(f"SELECT id FROM metering_meter WHERE id IN ({marks})")  # noqa: S608
        values += list(meter_ids)
    if not choices:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT id, scope, period, n_used, n_held FROM metering_meter
            WHERE id IN ({" UNION ".join(choices)}) ORDER BY id {lock()}
            """,  # noqa: S608 - only marks and constants are put in
            values,
        )
        return [_Meter(row) for row in cursor.fetchall()]
