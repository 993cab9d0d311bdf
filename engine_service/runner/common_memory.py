"""The memory of all ranks of a tensor-parallel engine, which sleep and wake together: rank 0 has
each do a part, does its own meanwhile, and hears what became of it."""

import logging
from collections.abc import Sequence

import torch

from engine_service.errors import EngineError, EngineLost, Overloaded
from engine_service.runner.device_memory import RETRY_AFTER_S, DeviceMemory, Memory
from engine_service.runner.loading import LoadedModel
from engine_service.runner.rank_messages import Fill, GiveBack, Held, MemoryPart, Record, Save
from engine_service.runner.tensor_parallel import RankGroup

logger = logging.getLogger(__name__)


def memory_of(loaded: LoadedModel) -> Memory:
    """Return what can be given back of a model that was loaded on devices."""
    own = DeviceMemory(loaded.holdings, device=torch.device(loaded.device))
    return own if loaded.ranks is None else CommonMemory(own, ranks=loaded.ranks)


class CommonMemory:
    """What the ranks hold on their devices; a ``Memory``.

    Invariant: nobody records graphs before all have their memory and weights. Graphs have sums of
    all ranks, and who lacks memory then would keep the others waiting for its summand: so that is
    the end of the engine, as in a step. Raises EngineLost for that, for what rank 0 fails at else,
    and where a rank is gone.
    """

    def __init__(self, own: DeviceMemory, *, ranks: RankGroup) -> None:
        self._own = own
        self._ranks = ranks
        self._held: Sequence[Held] = [_held(own)]
        self._is_filled = False

    @property
    def is_there(self) -> bool:
        return all(each.is_there for each in self._held)

    @property
    def is_given_back(self) -> bool:
        return all(each.is_given_back for each in self._held)

    @property
    def saved_bytes(self) -> int:
        return sum(each.saved_bytes for each in self._held)

    def save_next(self) -> bool:
        has_more = self._do(Save())
        if (lacks := self._lacks()) is not None:
            raise EngineError(f"the weights cannot be kept: {lacks}")
        return has_more

    def give_back(self) -> None:
        self._is_filled = False
        self._do(GiveBack())

    def take_next(self) -> None:
        if self._is_filled:
            self._do(Record())
            return
        self._is_filled = not self._do(Fill())
        if (lacks := self._lacks()) is not None:
            self.give_back()
            raise Overloaded(lacks, retry_after_s=RETRY_AFTER_S)

    def _do(self, part: MemoryPart) -> bool:
        """Have all ranks do this at once; return whether one of them has more of it to do."""
        self._ranks.send(part)
        try:
            own = do_part(part, memory=self._own)
        except Exception as error:
            raise EngineLost(f"rank 0 failed at its memory: {error}") from error
        self._held = [own, *self._ranks.answers(Held)]
        return any(each.has_more for each in self._held)

    def _lacks(self) -> str | None:
        return next((each.lacks for each in self._held if each.lacks is not None), None)


def do_part(part: MemoryPart, *, memory: DeviceMemory) -> Held:
    """Do a rank's part. What it raises else than for lack of memory is the end of the engine."""
    match part:
        case Save():
            try:
                return _held(memory, has_more=memory.save_next())
            except Exception as error:  # such as no memory on the host: the rank can work
                logger.exception("the weights cannot be kept")
                return _held(memory, lacks=repr(error))
        case Fill():
            try:
                return _held(memory, has_more=memory.fill_next())
            except Overloaded as error:
                return _held(memory, lacks=str(error))
        case Record():
            return _held(memory, has_more=memory.record_next())
        case GiveBack():
            memory.give_back()
            return _held(memory)


def _held(memory: DeviceMemory, *, has_more: bool = False, lacks: str | None = None) -> Held:
    return Held(
        is_there=memory.is_there,
        is_given_back=memory.is_given_back,
        saved_bytes=memory.saved_bytes,
        has_more=has_more,
        lacks=lacks,
    )
