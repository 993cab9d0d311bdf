"""Whose turn it is on a shared device, with a fake clock; and a random run of engines that never
has more awake than there is room for, and leaves nobody waiting."""

import random
from dataclasses import dataclass, field

import pytest

from apps.engines.health import EngineHealth
from apps.engines.translation import engine_health
from apps.engines.turns import Turn, Turns
from apps.engines.types import Share, Sharing
from engine_service.protocol import EngineStats, Pong

TURN_S = 10.0
GPU, OTHER = 1, 2


def health(**stats: object) -> EngineHealth:
    pong = Pong(nonce=1, epoch=1, stats=EngineStats(**stats))  # type: ignore[arg-type]
    return engine_health(pong, round_trip_s=0.0)


IDLE = health()
BUSY = health(n_running=1)
ASLEEP = health(is_asleep=True, is_given_back=True)
WANTS = health(n_waiting=1, is_asleep=True, is_given_back=True, waits_for_memory=True)


@dataclass
class Device:
    """A GPU with room for some awake; whoever is told something new is noted."""

    room_bytes: int = 100
    now: float = 1000.0
    told: list[str] = field(default_factory=list)
    shares: dict[int, Share] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.turns = Turns(turn_s=TURN_S, clock=lambda: self.now)
        self.of: dict[str, Turn] = {}

    def begin(
        self,
        name: str,
        n_bytes: int = 80,
        *,
        sleeps: bool = True,
        devices: tuple[int, ...] = (GPU,),
    ) -> Turn:
        process_id = ord(name)
        self.shares[process_id] = Share(device_ids=devices, n_bytes=n_bytes, sleeps=sleeps)
        self.share()
        self.of[name] = self.turns.begin(
            process_id,
            share=self.shares[process_id],
            changed=lambda: self.told.append(f"{name}{'+' if self.of[name].may_hold else '-'}"),
        )
        return self.of[name]

    def share(self) -> None:
        room = {GPU: self.room_bytes, OTHER: self.room_bytes}
        sharing = Sharing(shares=dict(self.shares), room_bytes=room)
        self.turns.share(sharing, going_on=list(self.shares))

    def started(self, name: str, n_bytes: int = 80) -> Turn:
        """One that started when it had its turn, and is awake without work."""
        turn = self.begin(name, n_bytes)
        assert turn.may_start()
        turn.seen(IDLE, told=True)
        return turn

    def put_to_sleep(self, name: str) -> None:
        turn = self.of[name]
        turn.take_back()
        turn.seen(ASLEEP, told=False)
        assert not turn.holds


def test_they_start_one_after_the_other_each_once_the_one_before_sleeps() -> None:
    gpu = Device()
    a, b, c = (gpu.begin(name) for name in "abc")
    assert [turn.may_start() for turn in (a, b, c)] == [True, False, False]
    gpu.now += 100
    assert not b.may_start(), "one that starts is left alone, however long it takes"
    a.seen(IDLE, told=True)
    assert gpu.told == ["a+", "a-"]
    assert not b.may_hold
    a.seen(IDLE, told=True)  # to what it was told before
    assert not b.may_hold
    a.seen(IDLE, told=False)
    assert not b.may_hold, "it still has its memory"
    a.seen(ASLEEP, told=False)
    assert gpu.told == ["a+", "a-", "b+"]
    assert b.may_start()
    b.seen(IDLE, told=True)
    b.seen(ASLEEP, told=False)
    assert gpu.told == ["a+", "a-", "b+", "b-", "c+"]
    assert c.may_start()
    gpu.now += 100
    c.seen(IDLE, told=True)
    assert c.may_hold, "nobody waits"


@pytest.mark.parametrize("told", [True, None])
def test_an_answer_to_what_it_was_told_before_says_nothing(told: bool | None) -> None:
    """It slept by itself, and had leave to wake when it said so."""
    gpu = Device()
    a, b = gpu.started("a"), gpu.begin("b")
    assert not b.may_start()
    assert not a.may_hold
    a.seen(ASLEEP, told=told)
    assert not b.may_hold
    a.seen(ASLEEP, told=False)
    assert b.may_hold


def test_who_wants_to_wake_has_the_one_without_work_sleep_now() -> None:
    gpu = Device()
    gpu.started("a")
    gpu.put_to_sleep("a")
    gpu.started("b")
    gpu.of["a"].seen(WANTS, told=False)
    assert gpu.told[-1] == "b-"
    assert not gpu.of["a"].may_hold
    gpu.of["b"].seen(ASLEEP, told=False)
    assert gpu.told[-1] == "a+"


def test_a_busy_one_has_its_turn_and_then_begins_nothing_new() -> None:
    gpu = Device()
    gpu.started("a")
    gpu.put_to_sleep("a")
    b = gpu.started("b")
    b.seen(BUSY, told=True)
    gpu.of["a"].seen(WANTS, told=False)
    gpu.now += TURN_S - 0.1
    b.seen(BUSY, told=True)
    assert b.may_hold
    gpu.now += 0.1
    b.seen(BUSY, told=True)
    assert not b.may_hold
    b.seen(health(n_running=1, n_waiting=3, waits_for_memory=True), told=False)
    assert not gpu.of["a"].may_hold, "it finishes what has begun"
    b.seen(WANTS, told=False)
    assert gpu.of["a"].may_hold
    # And the other way round: it stands in line again.
    gpu.of["a"].seen(BUSY, told=True)
    gpu.now += TURN_S
    gpu.of["a"].seen(BUSY, told=True)
    gpu.of["a"].seen(ASLEEP, told=False)
    assert b.may_hold


def test_a_turn_begins_when_its_engine_is_awake() -> None:
    gpu = Device()
    gpu.started("a")
    gpu.put_to_sleep("a")
    gpu.started("b")
    gpu.put_to_sleep("b")
    a, b = gpu.of["a"], gpu.of["b"]
    a.seen(WANTS, told=False)
    assert a.may_hold
    for _ in range(5):  # it takes half a minute to wake
        gpu.now += 6
        a.seen(health(n_waiting=1, is_asleep=True), told=True)
        b.seen(WANTS, told=False)
        assert a.may_hold
    a.seen(BUSY, told=True)
    gpu.now += TURN_S
    a.seen(BUSY, told=True)
    assert not a.may_hold


def test_of_those_without_work_the_one_that_had_none_for_the_longest_goes() -> None:
    gpu = Device(room_bytes=100)
    for name in "abc":
        gpu.started(name, 30)
    for name in "bca":
        gpu.now += 1
        gpu.of[name].seen(BUSY, told=True)
        gpu.of[name].seen(IDLE, told=True)
    d = gpu.begin("d", 40)
    assert not d.may_start()
    assert gpu.told[-1] == "b-"
    assert gpu.of["c"].may_hold
    assert gpu.of["a"].may_hold
    gpu.of["b"].seen(ASLEEP, told=False)
    assert d.may_start()


def test_all_that_fit_are_awake_together() -> None:
    gpu = Device(room_bytes=100)
    for name in "ab":
        gpu.started(name, 50)
    assert gpu.told == ["a+", "b+"]
    assert gpu.of["a"].is_contended


def test_the_line_is_kept_even_where_one_behind_would_fit() -> None:
    gpu = Device(room_bytes=100)
    a = gpu.started("a", 60)
    a.seen(BUSY, told=True)
    large, small = gpu.begin("l", 80), gpu.begin("s", 20)
    assert not large.may_start()
    gpu.now += 1
    assert not small.may_start()
    assert gpu.begin("o", 80, devices=(OTHER,)).may_start(), "another device, another line"
    gpu.now += TURN_S
    a.seen(BUSY, told=True)
    a.seen(ASLEEP, told=False)
    assert large.may_hold
    assert small.may_hold, "beside it, there is room for it"


def test_one_that_never_sleeps_starts_once_those_awake_leave_it_room() -> None:
    gpu = Device(room_bytes=100)
    for name in "ab":
        gpu.started(name, 50)
    gpu.room_bytes = 60  # it takes 40 of it for good
    always = gpu.begin("x", 40, sleeps=False)
    gpu.now += 1
    gpu.of["b"].seen(BUSY, told=True)
    assert not always.may_start()
    assert gpu.told[-1] == "a-"
    gpu.of["a"].seen(ASLEEP, told=False)
    assert always.may_start()
    gpu.of["a"].seen(WANTS, told=False)
    gpu.now += TURN_S
    gpu.of["b"].seen(BUSY, told=True)
    assert always.may_hold, "nobody asks it to go"
    assert not gpu.of["b"].may_hold


def test_alone_one_may_try_whatever_the_room() -> None:
    gpu = Device(room_bytes=10)
    assert gpu.begin("a", 80).may_start()


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_what_ended_has_no_memory(is_forgotten: bool) -> None:
    gpu = Device()
    a, b = gpu.begin("a"), gpu.begin("b")
    assert a.may_start()
    assert not b.may_start()
    if is_forgotten:
        gpu.turns.end(ord("a"))
    else:
        a.ended()
    assert b.may_hold
    assert is_forgotten or not a.may_start(), "it stands in line again"


def test_who_does_not_want_it_any_more_leaves_the_line() -> None:
    gpu = Device()
    gpu.started("a")
    gpu.put_to_sleep("a")
    b = gpu.started("b")
    b.seen(BUSY, told=True)
    gpu.of["a"].seen(WANTS, told=False)
    gpu.of["a"].seen(ASLEEP, told=False)
    gpu.now += 2 * TURN_S
    b.seen(BUSY, told=True)
    assert b.may_hold


def test_who_shares_nothing_has_leave_at_once() -> None:
    turns = Turns(turn_s=TURN_S)
    turn = turns.begin(1, share=None, changed=lambda: None)
    assert turn.may_start()
    turn.seen(BUSY, told=None)
    assert not turn.is_contended


# -- on several devices ---------------------------------------------------------------------------


def test_who_is_on_two_gets_both_at_once_or_neither() -> None:
    """And nobody behind it in either line goes first, so that it gets both some time."""
    gpus = Device()
    a, b = gpus.started("a"), gpus.begin("b", devices=(OTHER,))
    assert b.may_start()
    b.seen(BUSY, told=True)
    both = gpus.begin("c", devices=(GPU, OTHER))
    assert not both.may_start()
    assert gpus.told == ["a+", "b+", "a-"], "a has no work, and b's turn has just begun"
    gpus.now += 1.0
    a.seen(WANTS, told=False)
    assert not a.may_hold, "though its device is free: who is on both waits for it longer"
    gpus.now += TURN_S
    gpus.turns.decide()
    assert not b.may_hold
    assert not both.may_hold
    b.seen(ASLEEP, told=False)
    assert both.may_hold
    both.seen(BUSY, told=True)
    gpus.now += TURN_S
    gpus.turns.decide()
    both.seen(WANTS, told=False)
    assert a.may_hold
    assert gpus.told == ["a+", "b+", "a-", "b-", "c+", "c-", "a+"]


# -- a random run ---------------------------------------------------------------------------------


@dataclass
class Engine:
    """An engine as it behaves: it takes memory only with leave, and gives it back when told to and
    nothing has begun."""

    turn: Turn
    n_bytes: int
    devices: tuple[int, ...] = (GPU,)
    is_started: bool = False
    has_memory: bool = False
    n_running: int = 0
    waiting: list[float] = field(default_factory=list)
    worst_wait_s: float = 0.0
    n_served: int = 0

    def act(self, rng: random.Random, now: float) -> None:
        if self.turn.waits_since is not None:
            self.worst_wait_s = max(self.worst_wait_s, now - self.turn.waits_since)
        if not self.is_started:
            self.is_started = self.has_memory = self.turn.may_start()
            return
        if rng.random() < 0.2:
            self.waiting.append(now)
        told = self.turn.may_hold
        if told and self.waiting:
            self.has_memory = True
            self.waiting.pop()
            self.n_running += 1
            self.n_served += 1
        if self.n_running and rng.random() < 0.6:
            self.n_running -= 1
        if not told and not self.n_running:
            self.has_memory = False
        if rng.random() < 0.8:
            answer = health(
                n_running=self.n_running,
                n_waiting=len(self.waiting),
                is_asleep=not self.has_memory,
                is_given_back=not self.has_memory,
                waits_for_memory=not told and bool(self.waiting),
            )
            self.turn.seen(answer, told=told)


@pytest.mark.parametrize("places", [[(GPU,)], [(GPU,), (OTHER,), (GPU, OTHER)]], ids=len)
@pytest.mark.parametrize("seed", range(30))
def test_never_over_the_device_and_nobody_starves(seed: int, places: list[tuple[int, ...]]) -> None:
    rng = random.Random(seed)
    gpu = Device(room_bytes=100)
    engines = []
    for name in "abcde"[: rng.randint(2, 5)]:
        n_bytes, devices = rng.randint(20, 100), rng.choice(places)
        turn = gpu.begin(name, n_bytes, devices=devices)
        engines.append(Engine(turn, n_bytes, devices))
    for _ in range(3000):
        gpu.now += 0.5
        engine = rng.choice(engines)
        engine.act(rng, gpu.now)
        if rng.random() < 0.003:
            engine.turn.ended()
            engine.is_started = engine.has_memory = False
            engine.n_running = 0
        for device in (GPU, OTHER):
            here = [each for each in engines if each.has_memory and device in each.devices]
            assert sum(each.n_bytes for each in here) <= 100
    assert all(each.n_served > 10 for each in engines)
    # Each of the others has a turn, and the end of what it has begun, before it.
    worst_wait_s = max(each.worst_wait_s for each in engines)
    assert worst_wait_s < len(engines) * 4 * TURN_S
