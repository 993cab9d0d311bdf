"""Which devices each replica gets. Pure: the fleet and what is wanted go in, devices or a refusal
for each come out. It knows neither the database nor how memory is measured."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A device of a node, or the disk of one. free_bytes: what nobody holds now; what engines hold
    is not in it. total_bytes: what all that are placed there may have together."""

    device_id: int
    node_id: int
    kind: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A replica that should run.

    key: tells it from others. n_bytes: what it needs in all, on each of ``n_devices`` devices of
    one kind and one node. kinds: of the devices that it may be on, the best first. beside: what it
    needs on that node besides, by kind, none of them its own. device_ids: where it is, or was last.
    held_bytes: what its processes hold now, by device or disk. asleep_bytes: what it keeps of each
    device while it sleeps; None: it never does. group: of those that are to be awake together, such
    as a deployment's replicas, which gain nothing by turns; None: it is alone. is_kept: they go on,
    so that it stays whatever fits. is_extra: it comes behind all that are not, as replicas beyond a
    deployment's fewest do.
    """

    key: int
    n_bytes: int
    kinds: tuple[str, ...]
    n_devices: int = 1
    beside: Mapping[str, int] = field(default_factory=dict)
    device_ids: tuple[int, ...] = ()
    held_bytes: Mapping[int, int] = field(default_factory=dict)
    asleep_bytes: int | None = None
    group: int | None = None
    is_kept: bool = False
    is_extra: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """n_bytes: what it needs in all, reserved on each of these devices. asleep_bytes: of that, what
    is reserved for it alone; the rest it shares with others that sleep there. None: all is."""

    key: int
    device_ids: tuple[int, ...]
    n_bytes: int
    asleep_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """It fits nowhere. missing: by device or disk, of the node where the least is missing; empty
    where no node has as many devices of its kinds, and what it needs beside them."""

    key: int
    n_bytes: int
    missing: Mapping[int, int]


Verdict = Placed | Refused


def place(rooms: Sequence[Room], claims: Collection[Claim]) -> list[Verdict]:
    """Give each claim its devices or a refusal, in the order of their keys.

    A claim gets all that it needs or nothing. What goes on where it is keeps its place and is
    reserved what it has not taken yet. Then each gets back the devices that it had, if it fits;
    then the largest first, each on the devices where the least is left (best-fit decreasing:
    Johnson, Near-optimal bin packing algorithms, MIT 1973). Those that are extra come last in all
    of that. Whoever is refused fits nowhere beside those that were placed.

    Those that may sleep share a device: on each there is room for all that are always awake, for
    what the sleepers keep asleep, and for the largest of them awake beside that, or the largest
    group. They come behind those that are always awake, and share only where they would not all fit
    awake.
    """
    fleet = _Fleet(rooms)
    verdicts: dict[int, Verdict] = {}
    moving = []
    for claim in sorted(claims, key=_order):
        if claim.is_kept and (home := fleet.home(claim)) is not None:
            verdicts[claim.key] = fleet.take(claim, home)
        else:
            moving.append(claim)
    for is_extra in (False, True):
        homeless = []
        for claim in (claim for claim in moving if claim.is_extra is is_extra):
            if (home := fleet.home(claim)) is not None and fleet.fits(claim, home):
                verdicts[claim.key] = fleet.take(claim, home)
            else:
                homeless.append(claim)
        for claim in homeless:
            verdicts[claim.key] = fleet.settle(claim)
    return [verdicts[key] for key in sorted(verdicts)]


def room_for_sleepers(rooms: Iterable[Room], placed: Collection[Placed]) -> dict[int, int]:
    """Return, by device with any, what those of them that are awake may have together there beyond
    what each keeps asleep."""
    left = {room.device_id: room.total_bytes for room in rooms}
    shared = {
        each for claim in placed if claim.asleep_bytes is not None for each in claim.device_ids
    }
    for claim in placed:
        for device_id in claim.device_ids:
            kept = claim.n_bytes if claim.asleep_bytes is None else claim.asleep_bytes
            left[device_id] -= kept
    return {device_id: n_bytes for device_id, n_bytes in left.items() if device_id in shared}


@dataclass(frozen=True, slots=True)
class _Sleepers:
    """Those of a device together. asleep: what they keep in any case. awake: what each group needs
    beyond that. held: of it all, what they hold now."""

    asleep: int = 0
    awake: Mapping[tuple[bool, int], int] = field(default_factory=dict)
    held: int = 0

    def joined(self, claim: Claim, *, held: int) -> "_Sleepers":
        asleep = min(claim.asleep_bytes or 0, claim.n_bytes)
        is_alone = claim.group is None
        group = (is_alone, claim.key if claim.group is None else claim.group)
        awake = self.awake.get(group, 0) + claim.n_bytes - asleep
        return _Sleepers(
            asleep=self.asleep + asleep,
            awake={**self.awake, group: awake},
            held=self.held + held,
        )

    @property
    def need(self) -> int:
        return self.asleep + max(self.awake.values()) if self.awake else 0

    @property
    def need_awake(self) -> int:
        """What all of them need at once."""
        return self.asleep + sum(self.awake.values())

    @property
    def growth(self) -> int:
        """What has to be free for one to wake, others asleep; less than nothing where several are
        awake, who then give back more than that one takes."""
        return self.need - self.held


@dataclass(frozen=True, slots=True)
class _Site:
    """Where a claim could be. needs: what it needs there, by device or disk."""

    device_ids: tuple[int, ...]
    needs: Mapping[int, int]


class _Fleet:
    """The rooms, and what is left in each beside the always awake: of what is free, and of all that
    there is. That may be less than nothing where what goes on took more than was thought, or others
    did."""

    def __init__(self, rooms: Iterable[Room]) -> None:
        self._rooms = {room.device_id: room for room in rooms}
        self._free = {room.device_id: room.free_bytes for room in rooms}
        self._total = {room.device_id: room.total_bytes for room in rooms}
        self._sleepers = dict.fromkeys(self._rooms, _Sleepers())
        self._of_kind: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
        for room in sorted(rooms, key=lambda room: room.device_id):
            self._of_kind[room.node_id, room.kind].append(room.device_id)
        self._nodes = sorted({room.node_id for room in rooms})

    def home(self, claim: Claim) -> _Site | None:
        """Return the devices that it had, where there still are all and it may be on them."""
        rooms = [self._rooms[each] for each in claim.device_ids if each in self._rooms]
        places = {(room.node_id, room.kind) for room in rooms}
        if len(rooms) != claim.n_devices or len(places) != 1:
            return None
        ((node_id, kind),) = places
        return self._site(claim, claim.device_ids, node_id) if kind in claim.kinds else None

    def fits(self, claim: Claim, site: _Site) -> bool:
        return not any(self._missing(claim, site).values())

    def take(self, claim: Claim, site: _Site) -> Placed:
        for room, n_bytes in site.needs.items():
            held = claim.held_bytes.get(room, 0)
            if self._sleeps_in(claim, room):
                self._sleepers[room] = self._sleepers[room].joined(claim, held=min(held, n_bytes))
            else:
                self._free[room] -= max(0, n_bytes - held)
                self._total[room] -= n_bytes
        return Placed(
            key=claim.key,
            device_ids=site.device_ids,
            n_bytes=claim.n_bytes,
            asleep_bytes=claim.asleep_bytes,
        )

    def settle(self, claim: Claim) -> Verdict:
        """Take the tightest devices that fit, of the best kind that has them."""
        nearest: _Site | None = None
        for kind in claim.kinds:
            sites = [
                site
                for node_id in self._nodes
                if (site := self._best(claim, kind, node_id)) is not None
            ]
            fitting = [site for site in sites if self.fits(claim, site)]
            if fitting:
                return self.take(
                    claim,
                    min(fitting, key=lambda site: self._order(claim, site)),
                )
            nearest = min(
                (*sites, *([nearest] if nearest else [])),
                key=lambda site: (sum(self._missing(claim, site).values()), site.device_ids),
                default=None,
            )
        missing = {} if nearest is None else self._missing(claim, nearest)
        return Refused(
            key=claim.key,
            n_bytes=claim.n_bytes,
            missing={room: n_bytes for room, n_bytes in missing.items() if n_bytes},
        )

    def _best(self, claim: Claim, kind: str, node_id: int) -> _Site | None:
        """Return the devices of a node that it would get: those that fit it tightest, and where
        they are too few those where the least is missing. None where the node has too few."""

        def order(device_id: int) -> tuple[int, bool, int, int]:
            spare = self._spare(claim, device_id, claim.n_bytes)
            return (max(0, -spare), self._must_share(claim, device_id), spare, device_id)

        found = sorted(self._of_kind[node_id, kind], key=order)
        if len(found) < claim.n_devices:
            return None
        return self._site(claim, tuple(sorted(found[: claim.n_devices])), node_id)

    def _site(self, claim: Claim, device_ids: tuple[int, ...], node_id: int) -> _Site | None:
        needs = dict.fromkeys(device_ids, claim.n_bytes)
        for kind, n_bytes in claim.beside.items():
            rooms = self._of_kind[node_id, kind]
            if not rooms:
                return None
            needs[rooms[0]] = n_bytes
        return _Site(device_ids, needs)

    def _order(self, claim: Claim, site: _Site) -> tuple[bool, int, tuple[int, ...]]:
        """Return what says how good a site is where it fits, the best first: whether it is by
        turns, and how much of its devices would be left."""
        must_share = any(self._must_share(claim, each) for each in site.device_ids)
        left = sum(self._spare(claim, each, claim.n_bytes) for each in site.device_ids)
        return (must_share, left, site.device_ids)

    def _missing(self, claim: Claim, site: _Site) -> dict[int, int]:
        """Return how much does not fit, by device or disk."""
        return {
            room: max(0, -self._spare(claim, room, n_bytes)) for room, n_bytes in site.needs.items()
        }

    def _spare(self, claim: Claim, room: int, n_bytes: int) -> int:
        """Return what would be left there; less than nothing where it does not fit."""
        sleepers, held = self._sleepers[room], claim.held_bytes.get(room, 0)
        if self._sleeps_in(claim, room):
            sleepers, n_bytes, held = sleepers.joined(claim, held=held), 0, 0
        return min(
            self._free[room] - (n_bytes - held) - sleepers.growth,
            self._total[room] - n_bytes - sleepers.need,
        )

    def _must_share(self, claim: Claim, room: int) -> bool:
        """Whether it, and all who sleep there already, could not be awake at once."""
        if not self._sleeps_in(claim, room):
            return False
        sleepers = self._sleepers[room].joined(claim, held=claim.held_bytes.get(room, 0))
        n_bytes = sleepers.need_awake
        return n_bytes - sleepers.held > self._free[room] or n_bytes > self._total[room]

    def _sleeps_in(self, claim: Claim, room: int) -> bool:
        """Whether the room is a device of it, not beside that, which it gives back by sleeping."""
        return claim.asleep_bytes is not None and self._rooms[room].kind in claim.kinds


def _order(claim: Claim) -> tuple[bool, bool, int, int]:
    sleeps = claim.asleep_bytes is not None
    return (claim.is_extra, sleeps, -claim.n_bytes * claim.n_devices, claim.key)
