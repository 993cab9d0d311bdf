"""An engine that shares its device: told that others have the memory, it finishes what has begun,
gives the memory back and lets the rest wait; told that it may, it goes on. On torch's kernels on
the processor."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine_service import engine as engine_module
from engine_service.backends import turn as turn_module
from engine_service.backends.base import SequenceOutput
from engine_service.backends.native import NativeBackend
from engine_service.engine import Engine
from engine_service.errors import DeadlineExceeded, Overloaded
from engine_service.protocol import EngineStats, Standing
from engine_service.runner.device_memory import DeviceMemory
from tests.integration.engine.backend import run, tokens
from tests.integration.engine.test_sleep import (
    N_TOKENS,
    make_request,
    make_sleeper,
    memory_of,
    n_held_bytes,
    small_pieces,
)
from tests.waiting import wait_until

__all__ = ["small_pieces"]  # a fixture, of all tests here


def steps(backend: NativeBackend) -> list[SequenceOutput]:
    """Do all that there is to do now."""
    outputs: list[SequenceOutput] = []
    while backend.has_work():
        outputs += backend.step()
    return outputs


def ended(outputs: list[SequenceOutput]) -> set[int]:
    return {output.key for output in outputs if output.finish_reason}


def test_what_has_begun_is_finished_and_what_has_not_waits(model_dir: Path) -> None:
    backend = make_sleeper(model_dir, max_sequences=1, max_batched_tokens=64)
    before = {key: tokens(run(backend, make_request(key))[key]) for key in range(3)}
    for key in range(2):
        backend.add(make_request(key))
    outputs = [*backend.step()]
    backend.lend(may_hold=False)
    backend.add(make_request(2))
    outputs += steps(backend)
    assert ended(outputs) == {0}
    assert tokens(outputs) == before[0]
    stats = backend.stats()
    assert (stats.is_asleep, stats.is_given_back, stats.waits_for_memory) == (True, True, True)
    assert stats.n_waiting == 2
    assert n_held_bytes(backend) == 0
    backend.lend(may_hold=True)
    outputs = steps(backend)
    assert {key: tokens(o for o in outputs if o.key == key) for key in (1, 2)} == {
        key: before[key] for key in (1, 2)
    }
    stats = backend.stats()
    assert (stats.is_asleep, stats.is_given_back, stats.waits_for_memory) == (False, False, False)


def test_without_work_it_gives_its_memory_back_at_once(model_dir: Path) -> None:
    backend = make_sleeper(model_dir, sleep_after_s=1000.0)
    run(backend, make_request(0))
    backend.lend(may_hold=False)
    assert backend.has_work()
    assert steps(backend) == []
    assert backend.stats().is_given_back
    assert not backend.stats().waits_for_memory
    assert not backend.has_work()


def test_one_that_began_to_wake_gives_back_what_it_took(model_dir: Path) -> None:
    backend = make_sleeper(model_dir)
    before = tokens(run(backend, make_request(0))[0])
    backend.lend(may_hold=False)
    steps(backend)
    backend.add(make_request(0))
    backend.lend(may_hold=True)
    assert backend.step() == []
    assert not backend.stats().is_given_back
    backend.lend(may_hold=False)
    assert steps(backend) == []
    assert backend.stats().is_given_back
    assert n_held_bytes(backend) == 0
    backend.lend(may_hold=True)
    assert tokens(steps(backend)) == before


def test_who_was_put_off_goes_on_though_nobody_new_begins(model_dir: Path) -> None:
    """The pool is too small for both answers: one gives up its blocks and is computed again."""
    backend = make_sleeper(model_dir, kv_cache_tokens=96)
    alone = {key: tokens(run(backend, make_request(key))[key]) for key in range(2)}
    for key in range(2):
        backend.add(make_request(key))
    outputs: list[SequenceOutput] = []
    while backend.stats().n_running < 2:
        outputs += backend.step()
    backend.lend(may_hold=False)
    backend.add(replace(make_request(9), standing=Standing(priority=5)))
    outputs += steps(backend)
    assert backend.stats().n_preemptions > 0
    assert ended(outputs) == {0, 1}
    for key in range(2):
        assert tokens(o for o in outputs if o.key == key) == alone[key]
    assert backend.stats().waits_for_memory
    backend.lend(may_hold=True)
    assert ended(steps(backend)) == {9}


@pytest.mark.parametrize(
    ("standing", "longest_wait_s", "error"),
    [(Standing(), 0.0, Overloaded), (Standing(deadline_s=1e-9), 60.0, DeadlineExceeded)],
)
def test_a_request_does_not_wait_for_ever(
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    standing: Standing,
    longest_wait_s: float,
    error: type[Exception],
) -> None:
    monkeypatch.setattr(turn_module, "LONGEST_WAIT_S", longest_wait_s)
    backend = make_sleeper(model_dir)
    before = tokens(run(backend, make_request(0))[0])
    backend.lend(may_hold=False)
    steps(backend)
    backend.add(replace(make_request(0, n=2), standing=standing))
    (output,) = steps(backend)
    assert isinstance(output.error, error)
    assert output.error.to_wire().retry_after_s is not None
    stats = backend.stats()
    assert (stats.n_waiting, stats.n_failed, stats.is_given_back) == (0, 1, True)
    backend.lend(may_hold=True)
    assert tokens(run(backend, make_request(0))[0]) == before


def test_memory_that_cannot_be_given_back_is_kept_and_tried_later(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as for no memory on the host. The requests go on waiting, and the loop does not spin."""
    backend = make_sleeper(model_dir)
    before = tokens(run(backend, make_request(0))[0])

    def no_memory(_: DeviceMemory) -> bool:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(DeviceMemory, "save_next", no_memory)
        backend.lend(may_hold=False)
        assert steps(backend) == []
    assert not backend.stats().is_given_back
    assert not backend.has_work()
    monkeypatch.setattr(backend._turn, "_tries_at_s", 0.0)
    steps(backend)
    assert backend.stats().is_given_back
    backend.lend(may_hold=True)
    assert tokens(run(backend, make_request(0))[0]) == before


def test_an_engine_that_keeps_its_memory_is_not_told(model_dir: Path) -> None:
    backend = make_sleeper(model_dir, sleep_after_s=None)
    before = tokens(run(backend, make_request(0))[0])
    backend.lend(may_hold=False)
    assert not backend.has_work()
    assert tokens(run(backend, make_request(0))[0]) == before
    assert not backend.stats().is_given_back


@pytest.fixture
def loop(model_dir: Path) -> Iterator[tuple[Engine, NativeBackend, list[SequenceOutput]]]:
    backend = make_sleeper(model_dir)
    outputs: list[SequenceOutput] = []
    engine = Engine(backend, on_outputs=outputs.extend, max_inbox=8, sleep_after_s=1000.0)
    engine.start()
    yield engine, backend, outputs
    assert engine.stop(timeout_s=10)


Loop = tuple[Engine, NativeBackend, list[SequenceOutput]]


def ping(engine: Engine, *, may_hold_memory: bool | None = None) -> EngineStats:
    answers: list[EngineStats] = []
    engine.ping(answers.append, may_hold_memory=may_hold_memory)
    wait_until("a pong", lambda: bool(answers))
    return answers[0]


def test_in_the_loop_it_is_told_by_pings_and_others_say_nothing(loop: Loop) -> None:
    engine, backend, outputs = loop
    ping(engine, may_hold_memory=False)
    wait_until("it to give its memory back", lambda: ping(engine).is_given_back)
    engine.submit(make_request(0))
    wait_until("the request to wait", lambda: ping(engine).waits_for_memory)
    for _ in range(20):
        assert ping(engine).is_given_back, "others may ping it too"
    assert outputs == []
    ping(engine, may_hold_memory=True)
    wait_until("the answer", lambda: ended(outputs) == {0})
    assert len(tokens(outputs)) == N_TOKENS
    assert memory_of(backend).is_there


def test_in_the_loop_a_silent_agent_is_waited_for_no_longer(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an engine without an agent does, it takes what is free."""
    monkeypatch.setattr(engine_module, "_LOOK_S", 0.01)
    engine, _, outputs = loop
    ping(engine, may_hold_memory=False)
    wait_until("it to give its memory back", lambda: ping(engine).is_given_back)
    engine.submit(make_request(0))
    wait_until("the request to wait", lambda: ping(engine).waits_for_memory)
    assert outputs == []
    monkeypatch.setattr(engine_module, "_AGENT_SILENT_S", 0.05)
    wait_until("the answer", lambda: ended(outputs) == {0})


def test_in_the_loop_a_request_is_refused_though_nothing_comes(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_LOOK_S", 0.01)
    monkeypatch.setattr(turn_module, "LONGEST_WAIT_S", 0.1)
    engine, _, outputs = loop
    ping(engine, may_hold_memory=False)
    engine.submit(make_request(0))
    wait_until("the refusal", lambda: bool(outputs))
    assert isinstance(outputs[0].error, Overloaded)
