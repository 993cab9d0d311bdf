"""Placement over ten thousand random fleets: never over memory on any device, nothing by halves,
never a refusal of what fits."""

import itertools
import random
from collections import defaultdict
from collections.abc import Mapping

import pytest

from apps.deployments.placement import Claim, Placed, Refused, Room, Verdict, place

N_FLEETS = 10_000
GIB = 2**30


def random_fleet(rng: random.Random) -> tuple[list[Room], list[Claim]]:
    """Of up to three nodes, each with a processor and a disk or without, and up to four GPUs."""
    size = rng.choice((3, 100, 80 * GIB))
    rooms: list[Room] = []
    for node_id in range(rng.randint(0, 3)):
        kinds = [kind for kind in ("cpu", "disk") if rng.random() < 0.8]
        for kind in kinds + ["cuda"] * rng.choice((0, 1, 2, 2, 4)):
            total = rng.randint(0, size)
            rooms.append(
                Room(
                    device_id=10 + len(rooms),
                    node_id=node_id,
                    kind=kind,
                    free_bytes=rng.choice((total, rng.randint(0, total))),
                    total_bytes=total,
                )
            )
    claims = []
    for key in range(rng.randint(0, 12)):
        claims.append(random_claim(rng, key, rooms=rooms, size=size))
    return rooms, claims


def random_claim(rng: random.Random, key: int, *, rooms: list[Room], size: int) -> Claim:
    kinds = rng.choice((("cpu",), ("cuda",), ("cuda",), ("cuda", "cpu")))
    n_devices = rng.choice((1, 1, 2, 2, 3)) if kinds == ("cuda",) else 1
    beside = {}
    if kinds == ("cuda",):
        beside = {kind: rng.randint(1, size) for kind in ("cpu", "disk") if rng.random() < 0.2}
    n_bytes = rng.randint(1, size)
    homes = rng.sample(rooms, min(n_devices, len(rooms)))
    if rng.random() < 0.7 and kinds == ("cuda",):
        gpus = [room for room in rooms if room.kind == "cuda" and room.node_id == 0]
        homes = rng.sample(gpus, min(n_devices, len(gpus)))
    if rng.random() < 0.3:
        homes = []
    device_ids = tuple(room.device_id for room in homes) or rng.choice(((), (99,)))
    held = {
        room.device_id: rng.randint(0, n_bytes + 1)
        for room in rooms
        if room.device_id in device_ids and rng.random() < 0.5
    }
    return Claim(
        key=key, n_bytes=n_bytes, kinds=kinds, n_devices=n_devices, beside=beside,
        device_ids=device_ids, held_bytes=held, is_extra=rng.random() < 0.3,
        is_kept=rng.random() < 0.5,
    )  # fmt: skip


def is_right(claim: Claim, rooms: list[Room]) -> bool:
    """Whether its home is what it may have: as many as it needs, of one kind and node, which has
    what it needs beside them."""
    homes = [room for room in rooms if room.device_id in claim.device_ids]
    return (
        len(homes) == claim.n_devices
        and len({(room.node_id, room.kind) for room in homes}) == 1
        and homes[0].kind in claim.kinds
        and needs_at(claim, [room.device_id for room in homes], rooms) is not None
    )


def needs_at(
    claim: Claim, device_ids: list[int] | tuple[int, ...], rooms: list[Room]
) -> dict[int, int] | None:
    """What it needs there, by room; None where its node has not all of the kinds."""
    node_id = next(room.node_id for room in rooms if room.device_id == device_ids[0])
    needs = dict.fromkeys(device_ids, claim.n_bytes)
    for kind, n_bytes in claim.beside.items():
        found = [r.device_id for r in rooms if (r.node_id, r.kind) == (node_id, kind)]
        if not found:
            return None
        needs[found[0]] = n_bytes
    return needs


def sites(claim: Claim, rooms: list[Room]) -> list[dict[int, int]]:
    """Every choice of devices that there is for it, and what it needs at each."""
    groups: dict[tuple[int, str], list[int]] = defaultdict(list)
    for room in rooms:
        groups[room.node_id, room.kind].append(room.device_id)
    return [
        needs
        for (_, kind), device_ids in groups.items()
        if kind in claim.kinds
        for chosen in itertools.combinations(device_ids, claim.n_devices)
        if (needs := needs_at(claim, chosen, rooms)) is not None
    ]


def shortfalls(
    claim: Claim, needs: Mapping[int, int], *, free: Mapping[int, int], total: Mapping[int, int]
) -> dict[int, int]:
    found = {}
    for room, n_bytes in needs.items():
        growth = n_bytes - claim.held_bytes.get(room, 0)
        found[room] = max(0, growth - free[room], n_bytes - total[room])
    return found


def check(rooms: list[Room], claims: list[Claim]) -> tuple[int, int]:
    """Hold one fleet to all that is promised; return how many were placed and refused."""
    verdicts = place(rooms, claims)
    assert [verdict.key for verdict in verdicts] == [claim.key for claim in claims]
    free = {room.device_id: room.free_bytes for room in rooms}
    total = {room.device_id: room.total_bytes for room in rooms}
    moved: set[int] = set()
    for claim, verdict in zip(claims, verdicts, strict=True):
        if not isinstance(verdict, Placed):
            continue
        assert len(set(verdict.device_ids)) == claim.n_devices
        assert verdict.n_bytes == claim.n_bytes
        placed_on = [room for room in rooms if room.device_id in verdict.device_ids]
        assert len({(room.node_id, room.kind) for room in placed_on}) == 1
        assert placed_on[0].kind in claim.kinds
        needs = needs_at(claim, verdict.device_ids, rooms)
        assert needs is not None
        for room, n_bytes in needs.items():
            growth = max(0, n_bytes - claim.held_bytes.get(room, 0))
            free[room] -= growth
            total[room] -= n_bytes
            if not claim.is_kept or not is_right(claim, rooms):
                moved.add(room)
    for claim, verdict in zip(claims, verdicts, strict=True):
        is_kept = claim.is_kept and is_right(claim, rooms)
        if is_kept:
            assert isinstance(verdict, Placed)
            assert set(verdict.device_ids) == set(claim.device_ids)
        if isinstance(verdict, Refused):
            check_refusal(claim, verdict, rooms=rooms, free=free, total=total)
        if not is_kept:
            check_alone(rooms, claim)
    over = [room for room in moved if free[room] < 0 or total[room] < 0]
    grown = {
        room
        for claim, verdict in zip(claims, verdicts, strict=True)
        if isinstance(verdict, Placed) and not (claim.is_kept and is_right(claim, rooms))
        for room, n in (needs_at(claim, verdict.device_ids, rooms) or {}).items()
    }
    assert not grown & set(over), "over memory"
    n_placed = sum(isinstance(verdict, Placed) for verdict in verdicts)
    return n_placed, len(verdicts) - n_placed


def check_refusal(
    claim: Claim,
    refused: Refused,
    *,
    rooms: list[Room],
    free: dict[int, int],
    total: dict[int, int],
) -> None:
    """It fits nowhere, and where the least is missing is said."""
    assert refused.n_bytes == claim.n_bytes
    found = [shortfalls(claim, needs, free=free, total=total) for needs in sites(claim, rooms)]
    assert all(any(each.values()) for each in found), "it fits after all"
    if not found:
        assert refused.missing == {}
        return
    assert refused.missing
    assert all(n_bytes > 0 for n_bytes in refused.missing.values())
    # What came behind may have made it less, and nothing made it more.
    least = min(sum(each.values()) for each in found)
    assert sum(refused.missing.values()) <= least


def check_alone(rooms: list[Room], claim: Claim) -> None:
    """Alone it is refused only where it has no room, and with exactly the missing bytes it has."""
    (verdict,) = place(rooms, [Claim(**{**fields_of(claim), "is_kept": False})])
    free = {room.device_id: room.free_bytes for room in rooms}
    total = {room.device_id: room.total_bytes for room in rooms}
    found = [shortfalls(claim, needs, free=free, total=total) for needs in sites(claim, rooms)]
    assert isinstance(verdict, Placed) == any(not any(each.values()) for each in found)
    if isinstance(verdict, Refused) and verdict.missing:
        assert sum(verdict.missing.values()) == min(sum(each.values()) for each in found)
        for short, is_enough in ((1, False), (0, True)):
            grown = [
                Room(
                    device_id=room.device_id,
                    node_id=room.node_id,
                    kind=room.kind,
                    free_bytes=room.free_bytes + missing - short,
                    total_bytes=room.total_bytes + missing - short,
                )
                if (missing := verdict.missing.get(room.device_id))
                else room
                for room in rooms
            ]
            (again,) = place(grown, [Claim(**{**fields_of(claim), "is_kept": False})])
            assert isinstance(again, Placed) == is_enough


def fields_of(claim: Claim) -> dict[str, object]:
    return {name: getattr(claim, name) for name in Claim.__slots__}


def test_ten_thousand_random_fleets() -> None:
    n_placed = n_refused = 0
    for seed in range(N_FLEETS):
        rng = random.Random(seed)
        rooms, claims = random_fleet(rng)
        try:
            placed, refused = check(rooms, claims)
            shuffled = rng.sample(claims, len(claims))
            assert place(rooms, shuffled) == place(rooms, claims), "the order of claims counts"
        except AssertionError as error:
            raise AssertionError(f"fleet {seed}: {error}\n{rooms}\n{claims}") from error
        n_placed, n_refused = n_placed + placed, n_refused + refused
    print(f"{N_FLEETS} fleets: {n_placed} replicas placed, {n_refused} refused")
    assert n_placed > N_FLEETS < n_refused, "the fleets are too easy, or too full"


def room(device_id: int, free_bytes: int, kind: str = "cpu", **fields: int) -> Room:
    numbers = {"node_id": 0, "total_bytes": 1000, **fields}
    return Room(device_id=device_id, kind=kind, free_bytes=free_bytes, **numbers)


def claim(key: int, n_bytes: int, **fields: object) -> Claim:
    return Claim(key=key, n_bytes=n_bytes, **{"kinds": ("cpu",), **fields})  # type: ignore[arg-type]


def placed(key: int, n_bytes: int, *device_ids: int) -> Placed:
    return Placed(key=key, device_ids=device_ids, n_bytes=n_bytes)


def refused(key: int, n_bytes: int, **missing: int) -> Refused:
    """Of devices named such as ``d2``."""
    found = {int(name[1:]): n for name, n in missing.items()}
    return Refused(key=key, n_bytes=n_bytes, missing=found)


def verdicts(rooms: list[Room], *claims: Claim) -> list[Verdict]:
    return place(rooms, claims)


def test_a_refusal_names_what_is_missing_and_where_it_is_least() -> None:
    rooms = [room(1, 50), room(2, 70, node_id=1), room(3, 500, "cuda")]
    assert verdicts(rooms, claim(0, 100)) == [refused(0, 100, d2=30)]
    assert verdicts([], claim(0, 100)) == [refused(0, 100)]


@pytest.mark.parametrize("is_kept", [True, False])
def test_what_has_a_device_keeps_it_before_a_larger_one_comes(is_kept: bool) -> None:
    small = claim(0, 60, device_ids=(1,), is_kept=is_kept)
    assert verdicts([room(1, 100)], small, claim(1, 90)) == [
        placed(0, 60, 1),
        refused(1, 90, d1=50),
    ]


def test_what_starts_is_reserved_all_that_it_will_take() -> None:
    starting = claim(0, 80, device_ids=(1,), held_bytes={1: 30}, is_kept=True)
    assert verdicts([room(1, 100)], starting, claim(1, 50)) == [placed(0, 80, 1), placed(1, 50, 1)]
    assert verdicts([room(1, 100)], starting, claim(1, 51))[1] == refused(1, 51, d1=1)


def test_one_that_is_replaced_may_use_what_its_old_process_holds() -> None:
    replaced = claim(0, 60, device_ids=(1,), held_bytes={1: 50})
    assert verdicts([room(1, 10)], replaced) == [placed(0, 60, 1)]


def test_the_tightest_device_of_the_best_kind_is_taken() -> None:
    rooms = [room(1, 80, "cuda"), room(2, 60, "cuda"), room(3, 55)]
    kinds = ("cuda", "cpu")
    assert verdicts(rooms, claim(0, 50, kinds=kinds)) == [placed(0, 50, 2)]
    assert verdicts(rooms[2:], claim(0, 50, kinds=kinds)) == [placed(0, 50, 3)]


def test_replicas_beyond_the_fewest_come_last() -> None:
    extra = claim(0, 90, is_extra=True)
    assert [type(v) for v in verdicts([room(1, 100)], extra, claim(1, 50))] == [Refused, Placed]


# -- several devices, and what is needed beside them ----------------------------------------------


def gpus(*free_bytes: int, node_id: int = 0) -> list[Room]:
    first = 10 * (node_id + 1)
    return [room(first + i, n, "cuda", node_id=node_id) for i, n in enumerate(free_bytes)]


def both(key: int, n_bytes: int, **fields: object) -> Claim:
    return claim(key, n_bytes, kinds=("cuda",), n_devices=2, **fields)


def test_several_devices_are_of_one_node_and_the_tightest() -> None:
    rooms = [*gpus(100, 10), *gpus(90, 60, 70, node_id=1)]
    assert verdicts(rooms, both(0, 60)) == [placed(0, 60, 21, 22)]
    # 100 and 90 are of two machines.
    assert verdicts(rooms, both(0, 80)) == [refused(0, 80, d22=10)]


def test_all_or_nothing() -> None:
    """One of its two GPUs has room: nothing of it is kept from the one that comes behind."""
    assert verdicts(gpus(100, 30), both(0, 80), claim(1, 90, kinds=("cuda",))) == [
        refused(0, 80, d11=50),
        placed(1, 90, 10),
    ]


def test_a_machine_with_too_few_devices_is_none() -> None:
    assert verdicts([*gpus(100), *gpus(100, node_id=1)], both(0, 10)) == [refused(0, 10)]


def test_one_that_lost_a_device_goes_elsewhere_even_if_it_runs() -> None:
    running = both(0, 60, device_ids=(10, 99), held_bytes={10: 60}, is_kept=True)
    assert verdicts(gpus(20, 70), running) == [placed(0, 60, 10, 11)]
    assert verdicts(gpus(20), running) == [refused(0, 60)]


def test_host_memory_and_disk_are_of_the_same_node() -> None:
    cpus = [room(1, 50), room(2, 40, node_id=1)]
    disks = [room(3, 10, "disk"), room(4, 99, "disk", node_id=1)]
    wanted = claim(0, 10, kinds=("cuda",), beside={"cpu": 40, "disk": 20})
    rooms = [*cpus, *disks, *gpus(10), *gpus(90, node_id=1)]
    assert verdicts(rooms, wanted) == [placed(0, 10, 20)]
    assert verdicts([*cpus, *disks, *gpus(10)], wanted) == [refused(0, 10, d3=10)]
    assert verdicts([cpus[0], *gpus(10)], wanted) == [refused(0, 10)]  # nobody knows its disk


def test_host_memory_counts_together_with_what_runs_on_the_processor() -> None:
    rooms = [room(1, 100), *gpus(50)]
    spilling = claim(0, 50, kinds=("cuda",), beside={"cpu": 70})
    assert verdicts(rooms, spilling, claim(1, 40)) == [placed(0, 50, 10), refused(1, 40, d1=10)]


def test_what_sleeps_is_counted_as_awake() -> None:
    """Its GPU looks free, and what is placed there may not need more than there is in all."""
    rooms = [room(1, 100, "cuda", total_bytes=100)]
    asleep = claim(0, 60, kinds=("cuda",), device_ids=(1,), is_kept=True)
    # As if it had been said to hold its memory just before it slept.
    stale = claim(0, 60, kinds=("cuda",), device_ids=(1,), held_bytes={1: 60}, is_kept=True)
    for sleeper in (asleep, stale):
        assert verdicts(rooms, sleeper, claim(1, 41, kinds=("cuda",)))[1] == refused(1, 41, d1=1)
        assert verdicts(rooms, sleeper, claim(1, 40, kinds=("cuda",)))[1] == placed(1, 40, 1)
