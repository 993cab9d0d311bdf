"""A rank of a tensor-parallel engine other than the first: does what rank 0 tells it, until rank 0
ends, and whatever it is at then. Started by ``tensor_parallel``.

Exit codes: 0 rank 0 ended, 70 what it was told to do failed.
"""

import argparse
import ctypes
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import torch

from engine_service.config import ModelConfig
from engine_service.errors import EngineLost, ModelError
from engine_service.models.shard import Shard
from engine_service.runner.collectives import Collectives, Member
from engine_service.runner.common_memory import do_part
from engine_service.runner.common_tiers import do_tier_part
from engine_service.runner.device_choice import device_of
from engine_service.runner.device_loading import DevicePart, load_part
from engine_service.runner.device_memory import DeviceMemory
from engine_service.runner.rank_channel import Channel, frame
from engine_service.runner.rank_messages import (
    Clear,
    Copy,
    Failed,
    FromRank,
    Loaded,
    Logits,
    MemoryPart,
    Pool,
    Ready,
    SetUp,
    Started,
    Step,
    TierPart,
    ToRank,
    to_rank_decoder,
)

logger = logging.getLogger("engine_service.rank")

_EXIT_FATAL: Final = 70
_PR_SET_PDEATHSIG: Final = 1


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="engine_service.runner.rank")
    parser.add_argument("--fd", type=int, required=True, help="socket to rank 0")
    wire = socket.socket(fileno=parser.parse_args(arguments).fd)
    os.set_inheritable(wire.fileno(), False)
    # Rank 0 decides when they end, also where a signal goes to the whole group of processes.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _end_with(wire)
    channel: Channel[ToRank] = Channel(wire, decoder=to_rank_decoder)
    set_up = channel.receive()
    if set_up is None:
        return 0
    assert isinstance(set_up, SetUp)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s rank {set_up.rank}: %(message)s",
    )
    try:
        return _work(set_up, channel=channel)
    except Exception as error:  # rank 0 waits for what it was to add: it must end too, and soon
        logger.exception("what rank 0 asked for has failed")
        failed = Failed(message=str(error), is_model_error=isinstance(error, ModelError))
        with suppress(OSError):
            channel.send(frame(failed))
        return _EXIT_FATAL


def _work(set_up: SetUp, *, channel: Channel[ToRank]) -> int:
    config = set_up.engine
    shard = Shard(set_up.rank, config.tensor_parallel)
    if config.n_threads is not None:
        torch.set_num_threads(config.n_threads)
    os.set_inheritable(set_up.rendezvous, False)
    channel.send(frame(Started()))

    def agree(n_blocks: int) -> int:
        channel.send(frame(Loaded(n_blocks)))
        pool = channel.receive()
        if not isinstance(pool, Pool):
            raise EngineLost("rank 0 ended")
        return pool.n_blocks

    device = device_of(config, rank=shard.rank)
    collectives = Collectives(shard, rendezvous=set_up.rendezvous, device=device)
    part = load_part(
        config,
        model_config=ModelConfig.from_dir(config.model_dir),
        member=Member(shard=shard, collectives=collectives, agree=agree),
    )
    memory = DeviceMemory([part.holding], device=device)
    # Collecting what loading left would halt a step, here as in rank 0.
    gc.collect()
    gc.freeze()
    channel.send(frame(Ready()))
    while (message := channel.receive()) is not None:
        if (answer := _do(message, part=part, memory=memory)) is not None:
            channel.send(frame(answer))
    return 0


def _do(message: ToRank, *, part: DevicePart, memory: DeviceMemory) -> FromRank | None:
    """Do it, and return what there is to say of it."""
    if isinstance(message, MemoryPart):
        return do_part(message, memory=memory)
    if isinstance(message, TierPart):
        assert part.tiers is not None
        return do_tier_part(message, tiers=part.tiers)
    match message:
        case Step():
            part.steps.compute(message.packed())
        case Logits(n_rows):
            part.steps.join_logits(n_rows)
        case Clear(blocks):
            part.steps.clear(blocks)
        case Copy(pairs):
            part.steps.copy(pairs)
        case _:
            raise EngineLost(f"rank 0 sent {type(message).__name__} out of its order")
    return None


def _end_with(wire: socket.socket) -> None:
    """End when rank 0 does: its end of ``wire`` closes then. Should this process be where no thread
    of Python's can run, the kernel ends it."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise EngineLost(f"prctl: {os.strerror(ctypes.get_errno())}")
    threading.Thread(target=_wait_for_end, args=(wire,), name="end", daemon=True).start()


def _wait_for_end(wire: socket.socket) -> None:
    poll = select.poll()
    poll.register(wire, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    logging.shutdown()
    # Others of the group may be gone: what torch would tell them at the end, it would wait for.
    os._exit(exit_code)
