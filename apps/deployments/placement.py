"""Which device each replica gets. Pure: the fleet and what is wanted go in, a device or a refusal
for each comes out. It knows neither the database nor how memory is measured."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A device. free_bytes: what nobody holds now; what engines hold is not in it."""

    device_id: int
    kind: str
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A replica that should run.

    key: tells it from others. n_bytes: what it needs in all. kinds: of the devices that it may be
    on, the best first. device_id: where it is, or was last; held_bytes: what its process holds
    there now. is_kept: that process goes on, so that it stays whatever fits. is_extra: it comes
    behind all that are not, as replicas beyond a deployment's fewest do.
    """

    key: int
    n_bytes: int
    kinds: tuple[str, ...]
    device_id: int | None = None
    held_bytes: int = 0
    is_kept: bool = False
    is_extra: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """n_bytes: what it needs in all, reserved there."""

    key: int
    device_id: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """It fits nowhere. device_id: where the least is missing; None where no device is of its kinds,
    and then all of it is missing."""

    key: int
    n_bytes: int
    missing_bytes: int
    device_id: int | None


Verdict = Placed | Refused


def place(rooms: Sequence[Room], claims: Collection[Claim]) -> list[Verdict]:
    """Give each claim a device or a refusal, in the order of their keys.

    What goes on where it is keeps its place and is reserved what it has not taken yet. Then each
    gets back the device that it had, if it fits; then the largest first, each on the device where
    the least is left (best-fit decreasing: Johnson, Near-optimal bin packing algorithms, MIT 1973).
    Those that are extra come last in all of that. Whoever is refused fits on no device beside those
    that were placed.
    """
    fleet = _Fleet(rooms)
    verdicts: dict[int, Verdict] = {}
    moving = []
    for claim in sorted(claims, key=_order):
        if claim.is_kept and (home := fleet.home(claim)) is not None:
            verdicts[claim.key] = fleet.take(claim, device_id=home)
        else:
            moving.append(claim)
    for is_extra in (False, True):
        homeless = []
        for claim in (claim for claim in moving if claim.is_extra is is_extra):
            if (home := fleet.home(claim)) is not None and fleet.fits(claim, device_id=home):
                verdicts[claim.key] = fleet.take(claim, device_id=home)
            else:
                homeless.append(claim)
        for claim in homeless:
            verdicts[claim.key] = fleet.settle(claim)
    return [verdicts[key] for key in sorted(verdicts)]


class _Fleet:
    """The rooms, and what is left in each. That may be less than nothing where what goes on took
    more than was thought, or others did."""

    def __init__(self, rooms: Iterable[Room]) -> None:
        self._rooms = {room.device_id: room for room in rooms}
        self._left = {room.device_id: room.free_bytes for room in rooms}

    def home(self, claim: Claim) -> int | None:
        """Return the device that it had, where there still is one and it may be on it."""
        room = None if claim.device_id is None else self._rooms.get(claim.device_id)
        return room.device_id if room is not None and room.kind in claim.kinds else None

    def fits(self, claim: Claim, *, device_id: int) -> bool:
        return self._missing(claim, device_id) <= 0

    def take(self, claim: Claim, *, device_id: int) -> Placed:
        self._left[device_id] -= max(0, claim.n_bytes - _held_on(claim, device_id))
        return Placed(key=claim.key, device_id=device_id, n_bytes=claim.n_bytes)

    def settle(self, claim: Claim) -> Verdict:
        """Take the tightest device that fits, of the best kind that has one."""
        missing = {
            device_id: self._missing(claim, device_id)
            for kind in claim.kinds
            for device_id, room in self._rooms.items()
            if room.kind == kind
        }
        for kind in claim.kinds:
            fitting = [
                device_id
                for device_id, n_bytes in missing.items()
                if n_bytes <= 0 and self._rooms[device_id].kind == kind
            ]
            if fitting:
                best = max(fitting, key=lambda device_id: (missing[device_id], -device_id))
                return self.take(claim, device_id=best)
        nearest = min(missing, key=lambda device_id: (missing[device_id], device_id), default=None)
        return Refused(
            key=claim.key,
            n_bytes=claim.n_bytes,
            missing_bytes=claim.n_bytes if nearest is None else missing[nearest],
            device_id=nearest,
        )

    def _missing(self, claim: Claim, device_id: int) -> int:
        """Return how much does not fit there; nothing or less where all of it does."""
        return claim.n_bytes - _held_on(claim, device_id) - self._left[device_id]


def _held_on(claim: Claim, device_id: int) -> int:
    return claim.held_bytes if claim.device_id == device_id else 0


def _order(claim: Claim) -> tuple[bool, int, int]:
    return (claim.is_extra, -claim.n_bytes, claim.key)
