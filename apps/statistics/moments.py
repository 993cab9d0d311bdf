"""Sums over units from which every comparison is computed, exact and in any order."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import add, attrgetter, sub
from typing import Self


@dataclass(frozen=True, slots=True)
class Moments:
    """How many units there are, the sums of their four totals, and of the products of these.

    A unit is what was assigned (an end user, a token, a conversation). ``y`` is its numerator and
    ``x`` its denominator (microseconds and requests, errors and requests); ``v`` and ``u`` are the
    same two from before the experiment, 0 where there is nothing. All are Python ints: sums of
    parts are the sum of the whole, to the last digit.
    """

    n: int = 0
    y: int = 0
    x: int = 0
    v: int = 0
    u: int = 0
    yy: int = 0
    yx: int = 0
    yv: int = 0
    yu: int = 0
    xx: int = 0
    xv: int = 0
    xu: int = 0
    vv: int = 0
    vu: int = 0
    uu: int = 0

    @classmethod
    def of(cls, y: int, x: int, v: int = 0, u: int = 0) -> Self:
        """Return the moments of one unit."""
        return cls(
            1, y, x, v, u, y * y, y * x, y * v, y * u, x * x, x * v, x * u, v * v, v * u, u * u
        )

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(*map(add, _sums(self), _sums(other)))

    def __sub__(self, other: "Moments") -> "Moments":
        """Take units out. One whose totals grew is replaced by: whole - old + new."""
        return Moments(*map(sub, _sums(self), _sums(other)))

    def to_json(self) -> list[int]:
        """Return the 15 sums in the order of the fields."""
        return list(_sums(self))

    @classmethod
    def from_json(cls, sums: Sequence[int]) -> Self:
        """Read what ``to_json`` wrote. Raises ValueError for another number of sums."""
        if len(sums) != 15:
            raise ValueError(f"moments are 15 sums, not {len(sums)}")
        return cls(*map(int, sums))


_sums = attrgetter(*(field.name for field in fields(Moments)))
