"""The other ranks of a tensor-parallel engine as its process sees them, which is rank 0.

Each is a child process with a socket pair of its own: over it goes what to do, and its end says
that the rank is dead. Tensors go between the ranks' devices by ``collectives``.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from torch import Tensor

from engine_service.config import EngineConfig
from engine_service.errors import EngineLost, ModelError
from engine_service.runner.device_steps import DeviceSteps
from engine_service.runner.rank_channel import Channel, frame
from engine_service.runner.rank_messages import (
    Clear,
    Copy,
    Failed,
    FromRank,
    Loaded,
    Logits,
    Pool,
    Ready,
    SetUp,
    Started,
    Step,
    from_rank_decoder,
)
from engine_service.runner.step_packing import PackedStep

_MODULE: Final = "engine_service.runner.rank"
_START_TIMEOUT_S: Final = 120.0
_LOAD_TIMEOUT_S: Final = 1800.0
# A rank reads what it is sent between two steps; a socket holds many of them.
_SEND_TIMEOUT_S: Final = 30.0
# Far more than what it is asked takes, with the steps before that.
_ANSWER_TIMEOUT_S: Final = 60.0
_LAST_WORDS_S: Final = 1.0
_END_S: Final = 5.0
_PAGE_BYTES: Final = 4096

_Answer = TypeVar("_Answer", bound=FromRank)


@dataclass(slots=True)
class _Rank:
    """failure: what it said of its end. reading: by the thread that reads its messages."""

    number: int
    process: "subprocess.Popen[bytes]"
    channel: Channel[FromRank]
    failure: Failed | None = None
    reading: threading.Lock = field(default_factory=threading.Lock)

    def hear(self) -> FromRank | None:
        """Return what it says next, None at its end. Raises TimeoutError after the socket's."""
        with self.reading:
            said = self.channel.receive()
            if isinstance(said, Failed):
                self.failure = said
            return said


class RankGroup:
    """Ranks 1 to n - 1, started when made and told to load; used by one thread at a time, beside
    the one that watches them.

    To be made by a thread that lives as long as the group, such as the main one: to the kernel it
    is the parent with which the ranks die. rendezvous: where all ranks meet, see ``Collectives``;
    it has no name, so that nothing is left of it.

    Raises:
        EngineLost: a rank ended, or did not start in time.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.rendezvous = os.memfd_create("rendezvous")
        self.n_ranks = config.tensor_parallel
        self._is_closing = False
        self._ranks: list[_Rank] = []
        try:
            for number in range(1, config.tensor_parallel):
                self._ranks.append(_start(number, rendezvous=self.rendezvous))
            # All before any: each takes seconds to import what it needs.
            for rank in self._ranks:
                set_up = SetUp(rank=rank.number, rendezvous=self.rendezvous, engine=config)
                _send(rank, frame(set_up))
            self.answers(Started, timeout_s=_START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def agree(self, n_blocks: int) -> int:
        """Wait until all have loaded; return how many KV blocks each has room for, and tell all.

        Raises:
            ModelError: one cannot load the model.
            EngineLost: one ended.
        """
        answers = self.answers(Loaded, timeout_s=_LOAD_TIMEOUT_S)
        least = min(n_blocks, *(answer.n_blocks for answer in answers))
        self.send(Pool(least))
        return least

    def wait_until_ready(self) -> None:
        """Wait until all have what they need beside that. Raises likewise."""
        self.answers(Ready, timeout_s=_LOAD_TIMEOUT_S)

    def send(self, message: msgspec.Struct) -> None:
        """Have all other ranks do what rank 0 does next. Raises EngineLost where one is gone."""
        data = frame(message)
        for rank in self._ranks:
            _send(rank, data)

    def answers(
        self, kind: type[_Answer], *, timeout_s: float = _ANSWER_TIMEOUT_S
    ) -> Sequence[_Answer]:
        """Return what each says to what they were sent. Raises EngineLost where one says nothing,
        or that it ends."""
        deadline = time.monotonic() + timeout_s
        return [_answer(rank, kind, timeout_s=deadline - time.monotonic()) for rank in self._ranks]

    def resident_bytes(self) -> int:
        """Return what memory of this machine they hold; of one that has just ended, none."""
        found = 0
        for rank in self._ranks:
            with suppress(OSError, IndexError):
                pages = Path(f"/proc/{rank.process.pid}/statm").read_text().split()[1]
                found += int(pages) * _PAGE_BYTES
        return found

    def watch(self, on_lost: Callable[[EngineLost], None]) -> None:
        """From now on call ``on_lost``, on a thread of its own, when a rank ends; once."""
        threading.Thread(target=self._watch, args=(on_lost,), name="ranks", daemon=True).start()

    def close(self) -> None:
        """End the ranks, which takes them from whatever they do."""
        self._is_closing = True
        for rank in self._ranks:
            with suppress(OSError):
                rank.channel.wire.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + _END_S
        for rank in self._ranks:
            try:
                rank.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                rank.process.kill()
                rank.process.wait()
            rank.channel.wire.close()
        self._ranks = []
        os.close(self.rendezvous)

    def _watch(self, on_lost: Callable[[EngineLost], None]) -> None:
        poll = select.poll()
        ranks = {rank.channel.wire.fileno(): rank for rank in self._ranks}
        for number in ranks:  # for its end: answers are for who asked
            poll.register(number, select.POLLRDHUP)
        ((ended, _), *_) = poll.poll()
        if not self._is_closing:
            on_lost(_loss(ranks[ended]))


class CommonSteps:
    """Steps that all ranks compute, each its part."""

    def __init__(self, steps: DeviceSteps, *, ranks: RankGroup) -> None:
        self._steps = steps
        self._ranks = ranks

    def compute(self, step: PackedStep) -> Tensor:
        """Raises EngineLost where rank 0's part fails: the others wait for what it was to add."""
        self._ranks.send(Step.of(step))
        try:
            return self._steps.compute(step)
        except Exception as error:
            raise EngineLost(f"rank 0 failed in a step: {error}") from error

    def logits(self, normed: Tensor) -> Tensor:
        """Return the logits of these states, of a part of the vocabulary from each rank. Raises
        EngineLost likewise."""
        if len(normed):  # none, where chunks of prompts end later
            self._ranks.send(Logits(len(normed)))
        try:
            return self._steps.logits(normed)
        except Exception as error:
            raise EngineLost(f"rank 0 failed at logits: {error}") from error

    def clear(self, blocks: Sequence[int]) -> None:
        self._ranks.send(Clear(list(blocks)))
        self._steps.clear(blocks)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._ranks.send(Copy(list(pairs)))
        self._steps.copy(pairs)


def _start(number: int, *, rendezvous: int) -> _Rank:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, "--fd", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), rendezvous),
        )
    return _Rank(number, process, Channel(ours, decoder=from_rank_decoder))


def _send(rank: _Rank, data: bytes) -> None:
    try:
        rank.channel.wire.settimeout(_SEND_TIMEOUT_S)
        rank.channel.send(data)
    except OSError as error:
        raise _loss(rank) from error


def _answer(rank: _Rank, kind: type[_Answer], *, timeout_s: float) -> _Answer:
    rank.channel.wire.settimeout(max(0.1, timeout_s))
    try:
        answer = rank.hear()
    except TimeoutError as error:
        raise EngineLost(f"rank {rank.number} did not answer in time") from error
    if isinstance(answer, Failed) and answer.is_model_error:
        raise ModelError(f"rank {rank.number}: {answer.message}")
    if not isinstance(answer, kind):
        raise _loss(rank)
    return answer


def _loss(rank: _Rank) -> EngineLost:
    """Say why and how a rank ended, as far as it can be known."""
    rank.channel.wire.settimeout(_LAST_WORDS_S)
    with suppress(TimeoutError):  # of one that has not
        while rank.failure is None and rank.hear() is not None:
            pass
    if rank.failure is not None:
        return EngineLost(f"rank {rank.number} failed: {rank.failure.message}")
    try:
        code = rank.process.wait(timeout=_LAST_WORDS_S)
    except subprocess.TimeoutExpired:
        return EngineLost(f"rank {rank.number} hears nothing more")
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return EngineLost(f"rank {rank.number} ended: {how}")
