"""Placement of engines that sleep, over random fleets beside a slow reference: whoever of a device
is awake, alone of its sleepers, there is room for it."""

import itertools
import random
from collections.abc import Iterable, Mapping

from apps.deployments.placement import (
    Claim,
    Placed,
    Refused,
    Room,
    Verdict,
    place,
    room_for_sleepers,
)

N_FLEETS = 5_000


def random_fleet(rng: random.Random) -> tuple[list[Room], list[Claim]]:
    """Of up to two nodes, each with a processor and up to three GPUs."""
    size = rng.choice((10, 100))
    rooms: list[Room] = []
    for node_id in range(rng.randint(1, 2)):
        for kind in ["cpu"] + ["cuda"] * rng.randint(0, 3):
            total = rng.randint(size // 2, 2 * size)
            free = rng.choice((total, rng.randint(0, total)))
            rooms.append(
                Room(
                    device_id=10 + len(rooms), node_id=node_id, kind=kind,
                    free_bytes=free, total_bytes=total,
                )
            )  # fmt: skip
    return rooms, [
        random_claim(rng, key, rooms=rooms, size=size) for key in range(rng.randint(1, 9))
    ]


def random_claim(rng: random.Random, key: int, *, rooms: list[Room], size: int) -> Claim:
    n_bytes = rng.randint(1, size)
    n_devices, node_id = rng.choice((1, 1, 2)), rng.choice(rooms).node_id
    gpus = [room.device_id for room in rooms if (room.node_id, room.kind) == (node_id, "cuda")]
    has_home = len(gpus) >= n_devices and rng.random() < 0.8
    home = tuple(sorted(rng.sample(gpus, n_devices))) if has_home else ()
    is_kept, is_extra = rng.random() < 0.5, rng.random() < 0.2
    sleeps = rng.random() < 0.8
    held = {each: rng.randint(0, n_bytes + 2) for each in home if rng.random() < 0.6}
    return Claim(
        key=key,
        n_bytes=n_bytes,
        kinds=("cuda",),
        n_devices=n_devices,
        beside={"cpu": rng.randint(1, size // 2)} if sleeps and rng.random() < 0.3 else {},
        device_ids=home,
        # What comes last and is to move holds nothing that others could have counted on, and
        # neither does one that may come to one of its two devices again.
        held_bytes=held if is_kept or not (is_extra or n_devices > 1) else {},
        asleep_bytes=rng.randint(0, size // 4) if sleeps else None,
        group=rng.choice((None, None, 0, 1)),
        is_kept=is_kept,
        is_extra=is_extra,
    )


def shortfall(room: Room, there: Iterable[Claim], *, coming: Claim | None = None) -> int:
    """How much is missing on a device for all that are there, each sleeper awake in its turn with
    its group while the others sleep. coming: one of them, of which all that it holds counts."""
    found = [*there]
    worst = 0
    sleepers = [each for each in found if each.asleep_bytes is not None]
    always = [each for each in found if each.asleep_bytes is None]

    def held(each: Claim) -> int:
        n_bytes = each.held_bytes.get(room.device_id, 0)
        return n_bytes if each is coming else min(n_bytes, each.n_bytes)

    for awake in sleepers or [None]:
        needs = {
            each.key: each.n_bytes
            if each is awake
            or each.asleep_bytes is None
            or (awake is not None and each.group is not None and each.group == awake.group)
            else min(each.asleep_bytes, each.n_bytes)
            for each in found
        }
        total = sum(needs.values())
        growth = sum(needs[each.key] - held(each) for each in [*always, *sleepers])
        worst = max(worst, total - room.total_bytes, growth - room.free_bytes)
    return worst


def host_shortfall(room: Room, claims: Iterable[Claim]) -> int:
    n_bytes = sum(each.beside.get("cpu", 0) for each in claims)
    return max(0, n_bytes - min(room.free_bytes, room.total_bytes))


def check(rooms: list[Room], claims: list[Claim]) -> list[Verdict]:
    verdicts = place(rooms, claims)
    by_id = {room.device_id: room for room in rooms}
    host = {room.node_id: room for room in rooms if room.kind == "cpu"}
    placed = {v.key: v for v in verdicts if isinstance(v, Placed)}
    of_node: dict[int, list[Claim]] = {room.node_id: [] for room in rooms}
    there: dict[int, list[Claim]] = {room.device_id: [] for room in rooms}
    for claim in claims:
        if verdict := placed.get(claim.key):
            assert len({*verdict.device_ids}) == claim.n_devices
            assert verdict.asleep_bytes == claim.asleep_bytes
            for device_id in verdict.device_ids:
                there[device_id].append(claim)
            (node_id,) = {by_id[device_id].node_id for device_id in verdict.device_ids}
            of_node[node_id].append(claim)
            if claim.is_kept and claim.device_ids:
                assert verdict.device_ids == claim.device_ids
    for room in rooms:
        moved = [each for each in there[room.device_id] if not (each.is_kept and each.device_ids)]
        if moved:
            assert shortfall(room, there[room.device_id], coming=None) <= slack(moved, room)
            assert host_shortfall(host[room.node_id], of_node[room.node_id]) == 0 or not any(
                each.beside for each in moved
            )
    for verdict in verdicts:
        if isinstance(verdict, Refused):
            claim = next(each for each in claims if each.key == verdict.key)
            found = [
                sum(shortfall(room, [*there[room.device_id], claim], coming=claim) for room in site)
                + bool(claim.beside) * host_shortfall(host[node_id], [*of_node[node_id], claim])
                for node_id in host
                for site in sites(claim, rooms, node_id=node_id)
            ]
            assert all(found), f"{claim} fits after all: {found}"
            assert 0 < sum(verdict.missing.values()) <= min(found) if found else True
            assert bool(found) == bool(verdict.missing)
    check_room(rooms, placed=[*placed.values()], by_id=by_id)
    return verdicts


def sites(claim: Claim, rooms: list[Room], *, node_id: int) -> Iterable[tuple[Room, ...]]:
    gpus = [room for room in rooms if (room.node_id, room.kind) == (node_id, "cuda")]
    return itertools.combinations(gpus, claim.n_devices)


def slack(moved: Iterable[Claim], room: Room) -> int:
    """What a moved one held beyond its needs, which is free once it is replaced."""
    return sum(max(0, e.held_bytes.get(room.device_id, 0) - e.n_bytes) for e in moved)


def check_room(rooms: list[Room], *, placed: list[Placed], by_id: Mapping[int, Room]) -> None:
    """What they may have together awake is all that nobody else has."""
    found = room_for_sleepers(rooms, placed)
    for device_id, n_bytes in found.items():
        here = [each for each in placed if device_id in each.device_ids]
        kept = sum(e.n_bytes if e.asleep_bytes is None else e.asleep_bytes for e in here)
        assert n_bytes == by_id[device_id].total_bytes - kept
        assert any(each.asleep_bytes is not None for each in here)


def test_five_thousand_random_fleets() -> None:
    n_shared = n_refused = 0
    for seed in range(N_FLEETS):
        rng = random.Random(seed)
        rooms, claims = random_fleet(rng)
        try:
            verdicts = check(rooms, claims)
            assert place(rooms, rng.sample(claims, len(claims))) == verdicts
        except AssertionError as error:
            raise AssertionError(f"fleet {seed}: {error}\n{rooms}\n{claims}") from error
        sleeping = [
            device_id
            for each in verdicts
            if isinstance(each, Placed) and each.asleep_bytes is not None
            for device_id in each.device_ids
        ]
        n_shared += len(sleeping) - len(set(sleeping))
        n_refused += sum(isinstance(each, Refused) for each in verdicts)
    print(f"{N_FLEETS} fleets: {n_shared} share, {n_refused} refused")
    assert n_shared > N_FLEETS < n_refused, "the fleets are too easy, or too full"


def gpu(device_id: int, total: int, *, free: int | None = None) -> Room:
    return Room(
        device_id=device_id,
        node_id=0,
        kind="cuda",
        free_bytes=total if free is None else free,
        total_bytes=total,
    )


def sleeper(key: int, n_bytes: int, **fields: object) -> Claim:
    given = {"kinds": ("cuda",), "asleep_bytes": 5, **fields}
    return Claim(key=key, n_bytes=n_bytes, **given)  # type: ignore[arg-type]


def test_the_largest_awake_beside_what_all_keep_asleep() -> None:
    claims = [sleeper(0, 60), sleeper(1, 70), sleeper(2, 80)]
    assert place([gpu(1, 90)], claims) == [
        Placed(key=key, device_ids=(1,), n_bytes=n, asleep_bytes=5)
        for key, n in enumerate((60, 70, 80))
    ]
    verdict = place([gpu(1, 89)], claims)[0]
    assert verdict == Refused(key=0, n_bytes=60, missing={1: 1})


def test_a_group_is_awake_together() -> None:
    pair = [sleeper(key, 45, group=7) for key in range(2)]
    others = [sleeper(2, 80, group=8), sleeper(3, 90)]
    assert all(isinstance(each, Placed) for each in place([gpu(1, 105)], [*pair, *others]))
    third = sleeper(4, 45, group=7)
    assert place([gpu(1, 105)], [*pair, third]) == [
        *(Placed(key=key, device_ids=(1,), n_bytes=45, asleep_bytes=5) for key in range(2)),
        Refused(key=4, n_bytes=45, missing={1: 30}),
    ]


def test_a_device_of_its_own_goes_before_one_to_share() -> None:
    rooms = [gpu(1, 70), gpu(2, 90)]
    first = sleeper(0, 60, device_ids=(1,), is_kept=True)
    assert place(rooms, [first, sleeper(1, 60)])[1] == Placed(
        key=1, device_ids=(2,), n_bytes=60, asleep_bytes=5
    )
    # Where both are awake at once they do not share, and the tightest is taken.
    assert place([gpu(1, 130), gpu(2, 200)], [first, sleeper(1, 60)])[1] == Placed(
        key=1, device_ids=(1,), n_bytes=60, asleep_bytes=5
    )


def test_the_always_awake_come_first_and_are_not_shared_with() -> None:
    always = sleeper(2, 50, asleep_bytes=None)
    verdicts = place([gpu(1, 100)], [sleeper(0, 80), sleeper(1, 45), always])
    assert verdicts == [
        Refused(key=0, n_bytes=80, missing={1: 30}),
        Placed(key=1, device_ids=(1,), n_bytes=45, asleep_bytes=5),
        Placed(key=2, device_ids=(1,), n_bytes=50),
    ]
    assert room_for_sleepers([gpu(1, 100)], [v for v in verdicts if isinstance(v, Placed)]) == {
        1: 45
    }


def test_what_the_awake_ones_would_give_back_counts_as_free() -> None:
    """Two are awake; a third gets their place by turns, and so does one that never sleeps."""
    awake = [
        sleeper(key, 45, device_ids=(1,), held_bytes={1: 45}, is_kept=True) for key in range(2)
    ]
    rooms = [gpu(1, 100, free=10)]
    assert isinstance(place(rooms, [*awake, sleeper(2, 90)])[2], Placed)
    always = sleeper(2, 50, asleep_bytes=None)
    assert isinstance(place(rooms, [*awake, always])[2], Placed)
    too_large = sleeper(2, 51, asleep_bytes=None)
    assert place(rooms, [*awake, too_large])[2] == Refused(key=2, n_bytes=51, missing={1: 1})
