"""Decisions about an engine process, with a clock of the test's own."""

import pytest

from apps.engines.policy import EXIT_CONFIG, Action, Lifecycle, State, Timings


class Slot:
    """A lifecycle and a clock that moves only when told."""

    def __init__(self, *, needs_files: bool = False, **timings: float) -> None:
        self.now = 1000.0
        self.life = Lifecycle(Timings(**timings), needs_files=needs_files)

    def decide(self) -> Action:
        return self.life.decide(self.now)

    def spawn(self) -> None:
        assert self.decide() is Action.SPAWN
        self.life.spawned(self.now)

    def pong(self, *, draining: bool = False) -> None:
        self.life.ponged(self.now, draining=draining)

    def start(self) -> None:
        self.spawn()
        self.pong()
        assert self.life.state is State.READY

    def exit(self, code: int, reason: str = "it ended") -> None:
        self.life.exited(code, self.now, reason=reason)

    def wait(self, seconds: float, *, tick_s: float = 0.5) -> Action:
        """Let time pass in ticks; the first action that is not NONE, or NONE."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + tick_s)
            if (action := self.decide()) is not Action.NONE:
                return action
        return Action.NONE


def test_a_new_slot_is_spawned_and_ready_after_the_first_pong() -> None:
    slot = Slot()
    assert slot.life.state is State.STOPPED
    slot.spawn()
    assert slot.life.state is State.STARTING
    assert slot.wait(30) is Action.NONE
    slot.pong()
    assert slot.life.state is State.READY
    assert slot.decide() is Action.NONE


def test_one_that_waits_for_memory_is_asked_again_and_again_and_is_not_late() -> None:
    slot = Slot(start_deadline_s=20)
    for _ in range(100):
        assert slot.decide() is Action.SPAWN
        slot.life.waits_for_memory()
        assert slot.life.state is State.WAITING
        slot.now += 0.5
    assert slot.life.n_restarts == 0
    assert slot.life.resumes_in_s(slot.now) is None
    slot.start()


def test_one_that_waits_for_memory_stops_at_once() -> None:
    slot = Slot()
    slot.life.waits_for_memory()
    slot.life.stop()
    assert slot.decide() is Action.NONE
    assert slot.life.is_over


def test_an_engine_that_never_answers_is_killed_at_the_start_deadline() -> None:
    slot = Slot(start_deadline_s=20)
    slot.spawn()
    assert slot.wait(19.5) is Action.NONE
    assert slot.wait(0.5) is Action.KILL
    slot.exit(-9)
    assert slot.life.state is State.BACKING_OFF
    assert slot.life.last_error == "did not become ready in 20 s"


def test_crashes_back_off_from_half_a_second_to_thirty() -> None:
    slot = Slot(breaker_crashes=10)
    delays = []
    for _ in range(9):
        slot.spawn()
        slot.exit(1, "exit code 1: boom")
        left_at = slot.now
        assert slot.life.state is State.BACKING_OFF
        assert slot.wait(60, tick_s=0.125) is Action.SPAWN
        delays.append(slot.now - left_at)
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert slot.life.n_restarts == 9
    assert slot.life.last_error == "exit code 1: boom"


@pytest.mark.parametrize(("healthy_for_s", "delay_s"), [(59.5, 4.0), (60.0, 0.5)])
def test_a_minute_of_health_forgives_old_crashes(healthy_for_s: float, delay_s: float) -> None:
    slot = Slot()
    for _ in range(3):
        slot.spawn()
        slot.exit(1)
        slot.wait(60, tick_s=0.125)
    slot.start()
    for _ in range(int(healthy_for_s * 2)):
        slot.now += 0.5
        slot.pong()
    slot.exit(-9)
    left_at = slot.now
    assert slot.wait(60, tick_s=0.125) is Action.SPAWN
    assert slot.now - left_at == delay_s


def test_five_crashes_in_a_row_open_the_breaker_for_ten_minutes() -> None:
    slot = Slot()
    for _ in range(4):
        slot.spawn()
        slot.exit(1, "exit code 1: boom")
        assert slot.life.state is State.BACKING_OFF
        assert slot.wait(60) is Action.SPAWN
    slot.life.spawned(slot.now)
    slot.exit(-11, "killed by SIGSEGV")
    assert slot.life.state is State.CRASH_LOOP
    assert slot.life.last_error == (
        "5 crashes in a row; left alone for 10 min, or until it is restarted. "
        "The last one: killed by SIGSEGV"
    )
    assert slot.life.resumes_in_s(slot.now) == 600
    assert slot.wait(599.5) is Action.NONE
    assert slot.wait(0.5) is Action.SPAWN


def test_one_start_after_the_pause_decides() -> None:
    slot = Slot(breaker_crashes=2, breaker_pause_s=100)
    for _ in range(2):
        slot.spawn()
        slot.exit(1)
        slot.wait(60)
    assert slot.life.state is State.CRASH_LOOP
    assert slot.wait(100) is Action.SPAWN
    slot.life.spawned(slot.now)
    slot.exit(1, "exit code 1: again")
    assert slot.life.state is State.CRASH_LOOP
    assert slot.life.last_error.startswith("3 crashes in a row; left alone for 100 s")
    assert slot.life.last_error.endswith("The last one: exit code 1: again")
    assert slot.wait(100) is Action.SPAWN
    slot.life.spawned(slot.now)
    slot.pong()
    for _ in range(120):
        slot.now += 0.5
        slot.pong()
    slot.exit(-9)
    assert slot.life.state is State.BACKING_OFF


def test_what_is_no_crash_does_not_count_for_the_breaker() -> None:
    slot = Slot(breaker_crashes=2)
    for _ in range(5):
        assert slot.life.state is not State.CRASH_LOOP
        slot.life.spawn_failed(slot.now, reason="the database is away")
        slot.wait(60)
        slot.life.spawned(slot.now)
        slot.exit(0)  # somebody sent it a SIGTERM
        slot.wait(60)
    assert slot.life.state is State.BACKING_OFF
    assert slot.life.n_restarts == 10


def test_a_crash_loop_can_be_stopped() -> None:
    slot = Slot(breaker_crashes=1)
    slot.spawn()
    slot.exit(1)
    assert slot.life.state is State.CRASH_LOOP
    slot.life.stop()
    assert slot.decide() is Action.NONE
    assert slot.life.is_over
    assert slot.life.resumes_in_s(slot.now) is None


def test_exit_78_is_final_until_the_slot_is_made_anew() -> None:
    slot = Slot()
    slot.spawn()
    slot.exit(EXIT_CONFIG, "exit code 78: model.safetensors was altered")
    assert slot.life.state is State.FAILED
    assert slot.life.last_error == "exit code 78: model.safetensors was altered"
    assert slot.wait(3600) is Action.NONE
    slot.life.stop()
    assert slot.decide() is Action.NONE
    assert slot.life.is_over


def test_silence_past_the_deadline_kills_and_restarts() -> None:
    slot = Slot(ping_deadline_s=5)
    slot.start()
    assert slot.wait(4.5) is Action.NONE
    assert slot.wait(1.0) is Action.KILL
    assert slot.life.state is State.UNRESPONSIVE
    assert slot.wait(10) is Action.NONE, "one kill is enough"
    slot.exit(-9, "killed by SIGKILL")
    assert slot.life.last_error == "did not answer a ping in 5 s"
    assert slot.wait(0.5) is Action.SPAWN


def test_a_pong_ends_the_silence() -> None:
    slot = Slot(ping_deadline_s=5)
    slot.start()
    for _ in range(20):
        assert slot.wait(4.5) is Action.NONE
        slot.pong()


def test_the_agents_own_sleep_is_not_held_against_the_engine() -> None:
    slot = Slot(ping_deadline_s=5)
    slot.start()
    slot.now += 3600
    assert slot.decide() is Action.NONE
    assert slot.life.state is State.READY


def test_stop_terminates_then_kills_after_the_grace() -> None:
    slot = Slot(stop_grace_s=15)
    slot.start()
    slot.life.stop()
    assert slot.decide() is Action.TERMINATE
    assert slot.life.state is State.DRAINING
    assert slot.wait(14.5) is Action.NONE
    assert slot.wait(0.5) is Action.KILL
    slot.exit(-9)
    assert slot.life.state is State.STOPPED
    assert slot.life.is_over


def test_a_stop_that_the_engine_follows_needs_no_kill() -> None:
    slot = Slot()
    slot.start()
    slot.life.stop()
    assert slot.decide() is Action.TERMINATE
    slot.exit(0)
    assert slot.life.is_over
    assert slot.decide() is Action.NONE


def test_a_stop_while_starting_and_while_backing_off() -> None:
    starting = Slot()
    starting.spawn()
    starting.life.stop()
    assert starting.decide() is Action.TERMINATE
    waiting = Slot()
    waiting.spawn()
    waiting.exit(1)
    waiting.life.stop()
    assert waiting.decide() is Action.NONE
    assert waiting.life.is_over


def test_an_engine_that_someone_else_drains_leaves_the_traffic_and_comes_back() -> None:
    slot = Slot(stop_grace_s=15)
    slot.start()
    slot.pong(draining=True)
    assert slot.life.state is State.DRAINING
    slot.pong(draining=True)
    assert slot.wait(10) is Action.NONE
    slot.exit(0)
    assert slot.wait(0.5) is Action.SPAWN


def test_a_spawn_that_fails_backs_off() -> None:
    slot = Slot()
    assert slot.decide() is Action.SPAWN
    slot.life.spawn_failed(slot.now, reason="cannot be started: no database")
    assert slot.life.state is State.BACKING_OFF
    assert slot.life.last_error == "cannot be started: no database"
    assert slot.wait(0.5) is Action.SPAWN


def test_an_old_error_is_not_kept_for_a_new_one() -> None:
    slot = Slot(ping_deadline_s=5)
    slot.start()
    assert slot.wait(5.5) is Action.KILL
    slot.exit(-9)
    slot.wait(0.5)
    slot.life.spawned(slot.now)
    slot.pong()
    slot.exit(1, "exit code 1: out of memory")
    assert slot.life.last_error == "exit code 1: out of memory"


def test_files_come_before_the_first_start_and_no_other() -> None:
    slot = Slot(needs_files=True)
    assert slot.decide() is Action.FETCH
    slot.life.fetching()
    assert slot.life.state is State.FETCHING
    assert slot.wait(3600) is Action.NONE
    slot.life.fetched()
    slot.start()
    slot.exit(1)
    assert slot.wait(60) is Action.SPAWN


def test_files_that_cannot_be_had_are_tried_again_and_are_no_crash() -> None:
    slot = Slot(needs_files=True, breaker_crashes=2)
    delays = []
    for _ in range(8):
        assert slot.decide() is Action.FETCH
        slot.life.fetching()
        slot.life.fetch_failed(slot.now, reason="the storage is away", is_final=False)
        assert (slot.life.state, slot.life.last_error) == (State.BACKING_OFF, "the storage is away")
        left_at = slot.now
        assert slot.wait(60, tick_s=0.125) is Action.FETCH
        delays.append(slot.now - left_at)
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert slot.life.n_restarts == 0
    slot.life.fetching()
    slot.life.fetched()
    assert slot.life.last_error == ""
    slot.spawn()
    slot.exit(1)
    assert slot.wait(60, tick_s=0.125) is Action.SPAWN  # as the first of its crashes


def test_files_that_are_wrong_are_not_tried_again() -> None:
    slot = Slot(needs_files=True)
    assert slot.decide() is Action.FETCH
    slot.life.fetching()
    slot.life.fetch_failed(slot.now, reason="altered", is_final=True)
    assert slot.life.state is State.FAILED
    assert slot.wait(3600) is Action.NONE
    slot.life.stop()
    slot.decide()
    assert slot.life.is_over


def test_a_stop_while_its_files_are_fetched() -> None:
    slot = Slot(needs_files=True)
    slot.decide()
    slot.life.fetching()
    slot.life.stop()
    assert slot.decide() is Action.NONE
    assert slot.life.is_over
