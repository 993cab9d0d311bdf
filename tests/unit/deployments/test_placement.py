"""Placement over ten thousand random fleets: never over memory, never a refusal of what fits."""

import random
from collections import defaultdict

import pytest

from apps.deployments.placement import Claim, Placed, Refused, Room, Verdict, place

N_FLEETS = 10_000
GIB = 2**30


def growth(claim: Claim, device_id: int) -> int:
    """What it takes of a device beside what its process holds there already."""
    held = claim.held_bytes if claim.device_id == device_id else 0
    return max(0, claim.n_bytes - held)


def random_fleet(rng: random.Random) -> tuple[list[Room], list[Claim]]:
    size = rng.choice((3, 100, 80 * GIB))
    rooms = [
        Room(device_id=10 + i, kind=rng.choice(("cpu", "cuda")), free_bytes=rng.randint(0, size))
        for i in range(rng.randint(0, 5))
    ]
    homes = [None, 99, *(room.device_id for room in rooms)]
    claims = []
    for key in range(rng.randint(0, 12)):
        home = rng.choice(homes)
        n_bytes = rng.randint(1, size)
        kinds = rng.choice((("cpu",), ("cuda",), ("cuda", "cpu")))
        is_right = any(room.device_id == home and room.kind in kinds for room in rooms)
        claims.append(
            Claim(
                key=key,
                n_bytes=n_bytes,
                kinds=kinds,
                device_id=home,
                held_bytes=rng.choice((0, rng.randint(0, n_bytes + 1))) if home else 0,
                is_kept=is_right and rng.random() < 0.5,
                is_extra=rng.random() < 0.3,
            )
        )
    return rooms, claims


def left_over(rooms: list[Room], claims: list[Claim], verdicts: list[Verdict]) -> dict[int, int]:
    left = {room.device_id: room.free_bytes for room in rooms}
    for claim, verdict in zip(claims, verdicts, strict=True):
        if isinstance(verdict, Placed):
            left[verdict.device_id] -= growth(claim, verdict.device_id)
    return left


def check(rooms: list[Room], claims: list[Claim]) -> tuple[int, int]:
    """Hold one fleet to all that is promised; return how many were placed and refused."""
    verdicts = place(rooms, claims)
    assert [verdict.key for verdict in verdicts] == [claim.key for claim in claims]
    kinds = {room.device_id: room.kind for room in rooms}
    left = left_over(rooms, claims, verdicts)
    n_new: dict[int, int] = defaultdict(int)
    for claim, verdict in zip(claims, verdicts, strict=True):
        if claim.is_kept:
            assert verdict == Placed(
                key=claim.key, device_id=claim.device_id or 0, n_bytes=claim.n_bytes
            )
        elif isinstance(verdict, Placed):
            assert kinds[verdict.device_id] in claim.kinds
            n_new[verdict.device_id] += growth(claim, verdict.device_id)
    for device_id, n_bytes in n_new.items():
        assert not n_bytes or left[device_id] >= 0, "over memory"
    for claim, verdict in zip(claims, verdicts, strict=True):
        if isinstance(verdict, Refused):
            check_refusal(claim, verdict, kinds=kinds, left=left)
        if not claim.is_kept:
            check_alone(rooms, claim)
    n_placed = sum(isinstance(verdict, Placed) for verdict in verdicts)
    return n_placed, len(verdicts) - n_placed


def check_refusal(
    claim: Claim, refused: Refused, *, kinds: dict[int, str], left: dict[int, int]
) -> None:
    fitting = [device_id for device_id, kind in kinds.items() if kind in claim.kinds]
    assert refused.missing_bytes > 0
    assert refused.n_bytes == claim.n_bytes
    for device_id in fitting:
        assert growth(claim, device_id) > left[device_id], "it fits after all"
    if fitting:
        assert refused.device_id in fitting
        # What came behind may have made it less, and nothing made it more.
        assert refused.device_id is not None
        short = growth(claim, refused.device_id) - left[refused.device_id]
        assert refused.missing_bytes <= short
    else:
        assert (refused.device_id, refused.missing_bytes) == (None, claim.n_bytes)


def check_alone(rooms: list[Room], claim: Claim) -> None:
    """Alone it is refused only where no device of its kinds has the room, and with exactly the
    missing bytes it is not."""
    (verdict,) = place(rooms, [claim])
    fits = any(
        room.kind in claim.kinds and growth(claim, room.device_id) <= room.free_bytes
        for room in rooms
    )
    assert isinstance(verdict, Placed) == fits
    if isinstance(verdict, Refused) and verdict.device_id is not None:
        for extra, is_enough in ((verdict.missing_bytes - 1, False), (verdict.missing_bytes, True)):
            grown = [
                Room(
                    device_id=room.device_id,
                    kind=room.kind,
                    free_bytes=room.free_bytes + extra * (room.device_id == verdict.device_id),
                )
                for room in rooms
            ]
            (again,) = place(grown, [claim])
            assert isinstance(again, Placed) == is_enough


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


def claim(key: int, n_bytes: int, **fields: object) -> Claim:
    return Claim(key=key, n_bytes=n_bytes, **{"kinds": ("cpu",), **fields})  # type: ignore[arg-type]


def test_a_refusal_names_what_is_missing_and_where_it_is_least() -> None:
    rooms = [
        Room(device_id=1, kind="cpu", free_bytes=50),
        Room(device_id=2, kind="cpu", free_bytes=70),
        Room(device_id=3, kind="cuda", free_bytes=500),
    ]
    assert place(rooms, [claim(0, 100)]) == [
        Refused(key=0, n_bytes=100, missing_bytes=30, device_id=2)
    ]
    assert place([], [claim(0, 100)]) == [
        Refused(key=0, n_bytes=100, missing_bytes=100, device_id=None)
    ]


@pytest.mark.parametrize("is_kept", [True, False])
def test_what_has_a_device_keeps_it_before_a_larger_one_comes(is_kept: bool) -> None:
    rooms = [Room(device_id=1, kind="cpu", free_bytes=100)]
    small = claim(0, 60, device_id=1, is_kept=is_kept)
    assert place(rooms, [small, claim(1, 90)]) == [
        Placed(key=0, device_id=1, n_bytes=60),
        Refused(key=1, n_bytes=90, missing_bytes=50, device_id=1),
    ]


def test_what_starts_is_reserved_all_that_it_will_take() -> None:
    rooms = [Room(device_id=1, kind="cpu", free_bytes=100)]
    starting = claim(0, 80, device_id=1, held_bytes=30, is_kept=True)
    assert place(rooms, [starting, claim(1, 50)]) == [
        Placed(key=0, device_id=1, n_bytes=80),
        Placed(key=1, device_id=1, n_bytes=50),
    ]
    assert place(rooms, [starting, claim(1, 51)])[1] == Refused(
        key=1, n_bytes=51, missing_bytes=1, device_id=1
    )


def test_one_that_is_replaced_may_use_what_its_old_process_holds() -> None:
    rooms = [Room(device_id=1, kind="cpu", free_bytes=10)]
    assert place(rooms, [claim(0, 60, device_id=1, held_bytes=50)]) == [
        Placed(key=0, device_id=1, n_bytes=60)
    ]


def test_the_tightest_device_of_the_best_kind_is_taken() -> None:
    rooms = [
        Room(device_id=1, kind="cuda", free_bytes=80),
        Room(device_id=2, kind="cuda", free_bytes=60),
        Room(device_id=3, kind="cpu", free_bytes=55),
    ]
    kinds = ("cuda", "cpu")
    assert place(rooms, [claim(0, 50, kinds=kinds)]) == [Placed(key=0, device_id=2, n_bytes=50)]
    assert place(rooms[2:], [claim(0, 50, kinds=kinds)]) == [Placed(key=0, device_id=3, n_bytes=50)]


def test_replicas_beyond_the_fewest_come_last() -> None:
    rooms = [Room(device_id=1, kind="cpu", free_bytes=100)]
    extra = claim(0, 90, is_extra=True)
    assert [type(v) for v in place(rooms, [extra, claim(1, 50)])] == [Refused, Placed]
