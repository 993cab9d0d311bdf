"""The step loop with a stand-in backend: nothing that a request brings ends it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from engine_service.backends.base import EngineRequest, SequenceOutput
from engine_service.engine import MAX_FAILED_STEPS_IN_A_ROW, Engine
from engine_service.errors import EngineError, EngineLost, Overloaded, RequestError
from engine_service.protocol import EngineStats, SamplingParams
from tests.waiting import wait_until


class CountingBackend:
    """Gives each request the tokens 0, 1, 2, … one a step."""

    def __init__(self) -> None:
        self.live: dict[int, tuple[int, int]] = {}
        self.ended: list[SequenceOutput] = []
        self.n_steps = 0
        self.purged: list[str] = []
        self.fail_next = 0
        self.is_lost = False
        self.step_is_held = threading.Event()
        self.hold_steps = threading.Event()
        self.hold_steps.set()

    def watch(self, on_lost: Callable[[EngineLost], None]) -> None:
        self.lose = on_lost

    def add(self, request: EngineRequest) -> None:
        if request.max_new_tokens == 666:
            raise RequestError("no", code="invalid_value", param="max_tokens")
        if request.max_new_tokens == 667:
            raise ZeroDivisionError("a bug")
        self.live[request.key] = (0, request.max_new_tokens)

    def abort(self, key: int, *, choice: int | None = None) -> None:
        if (state := self.live.pop(key, None)) is not None:
            self.ended.append(
                SequenceOutput(key=key, finish_reason="abort", n_completion_tokens=state[0])
            )

    def has_work(self) -> bool:
        return bool(self.live or self.ended)

    def step(self) -> Sequence[SequenceOutput]:
        self.step_is_held.set()
        self.hold_steps.wait(10)
        self.n_steps += 1
        if self.is_lost:
            raise EngineLost("a process is gone")
        if self.fail_next:
            self.fail_next -= 1
            raise ValueError("boom")
        outputs, self.ended = self.ended, []
        for key, (n_done, n_tokens) in list(self.live.items()):
            is_last = n_done + 1 == n_tokens
            outputs.append(
                SequenceOutput(
                    key=key, token_ids=(n_done,), finish_reason="length" if is_last else None
                )
            )
            self.live[key] = (n_done + 1, n_tokens)
            if is_last:
                del self.live[key]
        return outputs

    def fail_running(self, error: EngineError) -> Sequence[SequenceOutput]:
        outputs = [SequenceOutput(key=key, error=error) for key in self.live]
        self.live.clear()
        return outputs

    def purge(self, tag: str) -> int:
        self.purged.append(tag)
        return 3

    def stats(self) -> EngineStats:
        return EngineStats(n_running=len(self.live), n_steps=self.n_steps)


class Recorder:
    def __init__(self) -> None:
        self.calls: list[list[SequenceOutput]] = []
        self.fatal: list[BaseException] = []

    def on_outputs(self, outputs: Sequence[SequenceOutput]) -> None:
        self.calls.append(list(outputs))

    def of(self, key: int) -> list[SequenceOutput]:
        return [output for call in self.calls for output in call if output.key == key]

    def is_done(self, key: int) -> bool:
        return any(output.finish_reason or output.error for output in self.of(key))


def make_request(key: int, *, max_new_tokens: int = 3) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=(1,),
        sampling=SamplingParams(),
        max_new_tokens=max_new_tokens,
    )


@contextmanager
def running(backend: CountingBackend, *, max_inbox: int = 8) -> Iterator[tuple[Engine, Recorder]]:
    recorder = Recorder()
    engine = Engine(
        backend,  # type: ignore[arg-type]  # no ModelInfo: the loop does not look at it
        on_outputs=recorder.on_outputs,
        max_inbox=max_inbox,
        on_fatal=recorder.fatal.append,
    )
    engine.start()
    try:
        yield engine, recorder
    finally:
        backend.hold_steps.set()
        assert engine.stop(timeout_s=10)


def test_outputs_come_once_a_step() -> None:
    backend = CountingBackend()
    backend.hold_steps.clear()
    with running(backend) as (engine, recorder):
        engine.submit(make_request(0, max_new_tokens=1))
        assert backend.step_is_held.wait(10)
        for key in (1, 2):
            engine.submit(make_request(key))
        backend.hold_steps.set()
        wait_until("both to finish", lambda: recorder.is_done(1) and recorder.is_done(2))
    assert [[output.key for output in call] for call in recorder.calls] == [
        [0],
        [1, 2],
        [1, 2],
        [1, 2],
    ]
    assert [output.token_ids for output in recorder.of(1)] == [(0,), (1,), (2,)]


def test_a_refused_request_gets_its_error_and_others_run() -> None:
    with running(CountingBackend()) as (engine, recorder):
        for key, n in ((0, 666), (1, 667), (2, 3)):
            engine.submit(make_request(key, max_new_tokens=n))
        wait_until("the good one to finish", lambda: recorder.is_done(2))
    (refused,) = recorder.of(0)
    assert isinstance(refused.error, RequestError)
    assert refused.error.param == "max_tokens"
    (broken,) = recorder.of(1)
    assert str(broken.error) == "a bug"
    assert recorder.of(2)[-1].finish_reason == "length"


def test_a_failed_step_ends_its_requests_and_the_loop_goes_on() -> None:
    backend = CountingBackend()
    with running(backend) as (engine, recorder):
        for attempt in range(MAX_FAILED_STEPS_IN_A_ROW + 2):
            backend.fail_next = 1
            engine.submit(make_request(2 * attempt))
            wait_until("the failure", lambda key=2 * attempt: recorder.is_done(key))
            engine.submit(make_request(2 * attempt + 1))
            wait_until("the answer", lambda key=2 * attempt + 1: recorder.is_done(key))
        assert engine.fatal is None
    assert str(recorder.of(0)[0].error) == "the step failed: boom"
    assert recorder.of(1)[-1].finish_reason == "length"
    assert recorder.fatal == []


def test_failing_steps_in_a_row_are_fatal() -> None:
    backend = CountingBackend()
    backend.fail_next = MAX_FAILED_STEPS_IN_A_ROW
    with running(backend) as (engine, recorder):
        for key in range(MAX_FAILED_STEPS_IN_A_ROW - 1):
            engine.submit(make_request(key))
            wait_until("the failure", lambda key=key: recorder.is_done(key))
            assert engine.fatal is None
        engine.submit(make_request(99))
        wait_until("the end", lambda: recorder.fatal)
        assert engine.fatal is recorder.fatal[0]
        assert str(engine.fatal) == "boom"
        with pytest.raises(EngineError, match="the engine has failed: boom"):
            engine.submit(make_request(100))


def test_a_step_that_finds_the_backend_lost_is_fatal_at_once() -> None:
    backend = CountingBackend()
    backend.is_lost = True
    with running(backend) as (engine, recorder):
        engine.submit(make_request(0))
        wait_until("the end", lambda: recorder.fatal)
        assert [str(error) for error in recorder.fatal] == ["a process is gone"]
        with pytest.raises(EngineError, match="the engine has failed: a process is gone"):
            engine.submit(make_request(1))
    assert backend.n_steps == 1


def test_a_backend_lost_while_a_step_hangs_is_fatal_at_once_and_once() -> None:
    backend = CountingBackend()
    backend.hold_steps.clear()
    with running(backend) as (engine, recorder):
        engine.submit(make_request(0))
        assert backend.step_is_held.wait(10)
        backend.lose(EngineLost("a process is gone"))
        assert [str(error) for error in recorder.fatal] == ["a process is gone"]
        with pytest.raises(EngineError, match="the engine has failed: a process is gone"):
            engine.submit(make_request(1))
        backend.is_lost = True
        backend.hold_steps.set()
        assert engine.stop(timeout_s=10)
        assert len(recorder.fatal) == 1


def test_abort_takes_effect_before_the_next_step_even_from_the_inbox() -> None:
    backend = CountingBackend()
    backend.hold_steps.clear()
    with running(backend) as (engine, recorder):
        engine.submit(make_request(0, max_new_tokens=1000))
        assert backend.step_is_held.wait(10)
        engine.abort(0)
        engine.submit(make_request(1, max_new_tokens=1000))
        engine.abort(1)
        engine.abort(12345)
        backend.hold_steps.set()
        wait_until("the aborts", lambda: recorder.is_done(0) and recorder.is_done(1))
        wait_until("the engine to be idle", lambda: not backend.has_work())
    assert [output.finish_reason for output in recorder.of(0)] == [None, "abort"]
    assert [output.n_completion_tokens for output in recorder.of(1)] == [0]
    assert backend.n_steps == 2


def test_a_full_inbox_is_overloaded() -> None:
    backend = CountingBackend()
    backend.hold_steps.clear()
    with running(backend, max_inbox=2) as (engine, recorder):
        engine.submit(make_request(0))
        assert backend.step_is_held.wait(10)
        engine.submit(make_request(1))
        engine.submit(make_request(2))
        with pytest.raises(Overloaded, match="inbox is full"):
            engine.submit(make_request(3))
        backend.hold_steps.set()
        wait_until("the accepted ones", lambda: all(recorder.is_done(key) for key in (0, 1, 2)))
        engine.submit(make_request(4))
        wait_until("a later one", lambda: recorder.is_done(4))
    assert recorder.of(3) == []


def test_ping_is_answered_by_the_step_thread_also_when_idle() -> None:
    answers: list[tuple[str, EngineStats]] = []
    with running(CountingBackend()) as (engine, recorder):
        engine.ping(lambda stats: answers.append((threading.current_thread().name, stats)))
        wait_until("the answer", lambda: answers)
    ((thread_name, stats),) = answers
    assert thread_name == "engine-step"
    assert stats.rss_bytes > 1_000_000
    assert stats.uptime_s > 0.0
    assert recorder.calls == []


def test_purge_is_done_by_the_step_thread_also_when_idle() -> None:
    answers: list[tuple[str, int]] = []
    backend = CountingBackend()
    with running(backend) as (engine, _):
        engine.purge("ann", lambda n: answers.append((threading.current_thread().name, n)))
        wait_until("the answer", lambda: answers)
    assert answers == [("engine-step", 3)]
    assert backend.purged == ["ann"]


def test_a_stopping_engine_takes_nothing() -> None:
    backend = CountingBackend()
    with running(backend) as (engine, _):
        assert engine.stop(timeout_s=10)
        with pytest.raises(Overloaded, match="stopping"):
            engine.submit(make_request(0))


def test_stop_says_when_a_step_does_not_end() -> None:
    backend = CountingBackend()
    backend.hold_steps.clear()
    with running(backend) as (engine, _):
        engine.submit(make_request(0))
        assert backend.step_is_held.wait(10)
        assert not engine.stop(timeout_s=0.05)
