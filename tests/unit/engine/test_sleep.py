"""When the step loop has a backend rest, and what else is answered meanwhile; and what sleep does
to the prefix cache and to recorded graphs."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine_service.__main__ import parse_options
from engine_service.config import EngineConfig
from engine_service.engine import Engine
from engine_service.errors import EngineLost, ModelError
from engine_service.protocol import EngineStats
from engine_service.runner.common_memory import CommonMemory, do_part
from engine_service.runner.decode_graphs import DecodeGraphs
from engine_service.runner.device_memory import DeviceMemory, Holding
from engine_service.runner.device_model import KVPool, PoolShape
from engine_service.runner.rank_messages import Held, MemoryPart
from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.tiers import Tiers
from tests.unit.engine.scheduling import MemoryStore
from tests.unit.engine.test_engine import CountingBackend, Recorder, make_request
from tests.waiting import wait_until

# Beyond any test's length: an engine that sleeps after it does not.
LONG_S = 1000.0


class RestingBackend(CountingBackend):
    """Rests in parts, of which each may be held; n_rests: parts done since the last work."""

    def __init__(self, *, n_parts: int) -> None:
        super().__init__()
        self.n_parts = n_parts
        self.n_rests = 0
        self.fail_rests = 0
        self.rest_began = threading.Event()
        self.hold_rests = threading.Event()
        self.hold_rests.set()

    def rest(self) -> bool:
        assert not self.has_work()
        self.rest_began.set()
        self.hold_rests.wait(10)
        if self.fail_rests:
            self.fail_rests -= 1
            raise RuntimeError("no memory on the host")
        self.n_rests += 1
        return self.n_rests < self.n_parts

    def stats(self) -> EngineStats:
        return EngineStats(n_steps=self.n_steps, is_asleep=self.n_rests == self.n_parts)


class Loop:
    def __init__(self, backend: RestingBackend, *, sleep_after_s: float | None) -> None:
        self.recorder = Recorder()
        self.engine = Engine(
            backend,  # type: ignore[arg-type]  # no ModelInfo: the loop does not look at it
            on_outputs=self.recorder.on_outputs,
            max_inbox=8,
            on_fatal=self.recorder.fatal.append,
            sleep_after_s=sleep_after_s,
        )

    def __enter__(self) -> "Loop":
        self.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.engine.stop(timeout_s=10)

    def ping(self) -> EngineStats:
        answers: list[EngineStats] = []
        self.engine.ping(answers.append)
        wait_until("a pong", lambda: bool(answers))
        return answers[0]

    def complete(self, key: int) -> None:
        self.engine.submit(make_request(key))
        wait_until("the request to finish", lambda: self.recorder.is_done(key))


def test_rests_to_the_end_once_it_had_no_work_for_long_enough() -> None:
    backend = RestingBackend(n_parts=3)
    with Loop(backend, sleep_after_s=0.05) as loop:
        wait_until("it to sleep", lambda: backend.n_rests == 3)
        assert loop.ping().is_asleep
        assert backend.n_rests == 3, "a ping is no reason to rest again"
        loop.complete(0)
        wait_until("it to sleep again", lambda: backend.n_rests == 4)
    assert not loop.recorder.fatal


@pytest.mark.parametrize("sleep_after_s", [None, LONG_S])
def test_does_not_rest_before_it_is_time(sleep_after_s: float | None) -> None:
    backend = RestingBackend(n_parts=1)
    with Loop(backend, sleep_after_s=sleep_after_s) as loop:
        loop.complete(0)
        for _ in range(20):
            assert not loop.ping().is_asleep
    assert backend.n_rests == 0


def test_a_request_goes_before_the_rest_of_resting() -> None:
    backend = RestingBackend(n_parts=10**9)
    backend.hold_rests.clear()
    with Loop(backend, sleep_after_s=0.01) as loop:
        assert backend.rest_began.wait(10)
        loop.engine.submit(make_request(0))
        loop.engine.purge("a", lambda n: None)
        backend.hold_rests.set()
        wait_until("the request to finish", lambda: loop.recorder.is_done(0))
        assert backend.n_rests < 10**9
        assert backend.purged == ["a"]


def test_a_stop_does_not_wait_for_the_rest_of_resting() -> None:
    backend = RestingBackend(n_parts=10**9)
    with Loop(backend, sleep_after_s=0.01):
        wait_until("it to rest", lambda: backend.n_rests > 3)
    assert backend.n_rests < 10**9


def test_what_fails_to_rest_works_on_and_tries_again() -> None:
    backend = RestingBackend(n_parts=1)
    backend.fail_rests = 2
    with Loop(backend, sleep_after_s=0.02) as loop:
        wait_until("it to sleep after all", lambda: backend.n_rests == 1)
        loop.complete(0)
    assert not loop.recorder.fatal


def test_the_option_reaches_the_configuration() -> None:
    arguments = ["--model", "m", "--socket", "s", "--epoch", "1"]
    assert parse_options(arguments).engine.sleep_after_s is None
    assert parse_options([*arguments, "--sleep-after-s", "90"]).engine.sleep_after_s == 90.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sleep_after_s": 0.0}, "positive"),
        ({"sleep_after_s": float("nan")}, "positive"),
        ({"sleep_after_s": 1.0, "kernels": "compiled"}, "kernels compiled"),
        ({"sleep_after_s": 1.0, "kernels": "reference"}, "kernels reference"),
    ],
)
def test_refuses_by_name(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        EngineConfig(model_dir=Path("m"), **settings)  # type: ignore[arg-type]


def test_all_blocks_are_forgotten_and_blank() -> None:
    blocks = BlockManager(n_blocks=4, block_size=16)
    held = blocks.claim(known=(), n_new=3)
    assert held is not None
    for block, digest in zip(held, (b"a", b"b", b"c"), strict=True):
        blocks.register(block, digest=digest, tags=("tenant",))
    with pytest.raises(RuntimeError, match="held"):
        blocks.forget_all()
    assert blocks.lookup([b"a", b"b"]) == held[:2]
    blocks.release(held)
    blocks.forget_all()
    assert (blocks.n_free, blocks.n_cached) == (4, 0)
    assert blocks.lookup([b"a"]) == []
    assert blocks.purge("tenant") == []
    again = blocks.claim(known=(), n_new=4)
    assert again is not None
    assert sorted(again) == [0, 1, 2, 3]


def test_what_no_step_came_to_spill_is_forgotten_below_the_pool_too() -> None:
    """Its host slot would hold another block's content."""
    tiers = Tiers(MemoryStore(n_host_slots=4, n_disk_slots=0))
    blocks = BlockManager(n_blocks=1, block_size=16, tiers=tiers)
    for digest in (b"a", b"b"):
        held = blocks.claim(known=(), n_new=1)
        assert held == [0]
        blocks.register(0, digest=digest)
        blocks.release(held)
        if digest == b"a":
            tiers.take()
    assert tiers.known([b"a"]) == [b"a"]
    blocks.forget_all()
    assert tiers.known([b"a"]) == []
    assert tiers.take().spills == ()


class RecordingApi:
    """Stands in for CUDA's graphs: repeats what was recorded as calls."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.n_forgotten = 0

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        result = compute()
        self.recorded.append(len(result))

        def replay() -> None:
            result.copy_(compute())

        return replay, result

    def forget(self) -> None:
        self.n_forgotten += 1


def test_graphs_are_dropped_and_recorded_anew_one_at_a_time() -> None:
    api = RecordingApi()
    graphs = DecodeGraphs(
        lambda n_rows, *, numbers: numbers[:n_rows].clone(),
        sizes=[1, 4, 2],
        device=torch.device("cpu"),
        api=api,
    )
    assert api.recorded == [4, 2, 1]
    assert not graphs.record_next()
    graphs.drop()
    assert api.n_forgotten == 1
    with pytest.raises(KeyError):
        graphs.run(2, numbers=torch.arange(12, dtype=torch.int32))
    for _ in range(3):
        assert graphs.record_next()
    assert not graphs.record_next()
    assert api.recorded == [4, 2, 1] * 2
    assert graphs.size_for(3) == 4


class OtherRank:
    """Stands in for ``RankGroup``: a rank in this process."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory
        self._said: list[Held] = []

    def send(self, part: MemoryPart) -> None:
        self._said.append(do_part(part, memory=self.memory))

    def answers(self, kind: type[Held]) -> list[Held]:
        return [self._said.pop()]


def rank_memory(
    *, n_weights: int, decode: Callable[..., Tensor], sizes: list[int]
) -> tuple[DeviceMemory, list[Tensor]]:
    """Return a rank's memory, saved a kilobyte at a time, and its weights."""
    cpu = torch.device("cpu")
    weights = [torch.full((256,), float(i)) for i in range(n_weights)]
    shape = PoolShape(n_layers=1, n_blocks=2, block_size=16, n_kv_heads=1, head_dim=2)
    graphs = DecodeGraphs(decode, sizes=sizes, device=cpu, api=RecordingApi())
    holding = Holding(weights, KVPool(shape, dtype=torch.float32, device=cpu), graphs)
    return DeviceMemory([holding], device=cpu, piece_bytes=1024), weights


def test_ranks_record_graphs_once_all_have_their_weights_and_both_at_once() -> None:
    """What is in a graph waits for the other rank. Rank 0 has a draft model's graphs, too."""
    everything: list[list[Tensor]] = []
    recorded: list[tuple[int, int]] = []

    def decoding(rank: int) -> Callable[..., Tensor]:
        def decode(n_rows: int, *, numbers: Tensor) -> Tensor:
            assert all(tensor[-1] == i for each in everything for i, tensor in enumerate(each))
            recorded.append((rank, n_rows))
            return numbers[:n_rows].clone()

        return decode

    own, mine = rank_memory(n_weights=2, decode=decoding(0), sizes=[1, 2, 4])
    other, others = rank_memory(n_weights=5, decode=decoding(1), sizes=[2, 4])
    everything += [mine, others]
    recorded.clear()
    memory = CommonMemory(own, ranks=OtherRank(other))  # type: ignore[arg-type]
    while memory.save_next():
        assert memory.is_there
    assert memory.saved_bytes == 7 * 1024
    memory.give_back()
    assert memory.is_given_back
    assert not any(tensor.untyped_storage().nbytes() for tensor in mine + others)
    memory.take_next()
    assert (memory.is_there, memory.is_given_back) == (False, False)
    while not memory.is_there:
        memory.take_next()
    assert recorded == [(1, 4), (0, 4), (1, 2), (0, 2), (0, 1)]


def test_a_rank_that_lacks_memory_for_a_graph_is_the_end_of_the_engine() -> None:
    """The other waits for it within the graph, and cannot be told."""
    lacks = False

    def decode(n_rows: int, *, numbers: Tensor) -> Tensor:
        if lacks:
            raise torch.OutOfMemoryError("no memory for the graph")
        return numbers[:n_rows].clone()

    own, _ = rank_memory(n_weights=1, decode=decode, sizes=[1])
    other, _ = rank_memory(
        n_weights=1, decode=lambda n_rows, *, numbers: numbers[:n_rows].clone(), sizes=[1]
    )
    memory = CommonMemory(own, ranks=OtherRank(other))  # type: ignore[arg-type]
    while memory.save_next():
        pass
    memory.give_back()
    lacks = True
    with pytest.raises(EngineLost, match="rank 0 failed at its memory"):
        while not memory.is_there:
            memory.take_next()
