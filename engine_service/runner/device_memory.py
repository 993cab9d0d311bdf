"""Gives back a device's memory while an engine sleeps, and takes it again.

Tensors keep their identity: only what their storages hold goes and comes, as FSDP does with a
layer's parameters (https://arxiv.org/abs/2304.11277, section 3.4). So whoever has a tensor, or a
view of one, has it again afterwards, at another address: what knows addresses, which is graphs,
is made anew.
"""

import logging
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Final, Protocol

import torch
from torch import Tensor, UntypedStorage

from engine_service.errors import Overloaded
from engine_service.runner.decode_graphs import DecodeGraphs
from engine_service.runner.device_model import KVPool

logger = logging.getLogger(__name__)

# What is copied between two looks at the inbox, and a size that torch need not round up.
_PIECE_BYTES: Final = 256 * 2**20
RETRY_AFTER_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Part:
    """So many bytes of one storage, and where they are within the host's pieces."""

    storage: int
    start: int
    n_bytes: int
    piece: int
    offset: int


@dataclass(frozen=True, slots=True)
class Holding:
    """What a model holds on a device. weights: tensors, and sequences and dataclasses with tensors
    in them. forget: called before the pool's content goes, so that nobody looks for it."""

    weights: object
    pool: KVPool
    graphs: DecodeGraphs | None
    forget: Callable[[], None] | None = None


class Memory(Protocol):
    """What an engine holds on its devices. Used by the step thread alone, while no step is in
    flight; while ``is_there`` is false no step may be computed."""

    @property
    def is_there(self) -> bool:
        """All of it is there."""

    @property
    def is_given_back(self) -> bool:
        """None of it is there: not even a part that was taken again so far."""

    @property
    def saved_bytes(self) -> int:
        """What the host keeps of it."""

    def save_next(self) -> bool:
        """Copy the next piece of the weights to the host; return whether one was lacking."""

    def give_back(self) -> None:
        """Give up weights, pools and graphs, once all pieces are saved. What the pools held is
        overwritten: it is somebody's text."""

    def take_next(self) -> None:
        """Do the next part of taking it all again; ``is_there`` says when that is over.

        Raises:
            Overloaded: somebody else has the memory; nothing is held then, and the next call begins
                anew.
        """


class DeviceMemory:
    """What the models of a process hold on its device; a ``Memory``.

    Invariants: what the host keeps is complete before anything is given up, and kept from then on,
    since weights never change: to give back later copies nothing, and to take again may fail as
    often as it likes.
    """

    def __init__(
        self,
        holdings: SequenceOf[Holding],
        *,
        device: torch.device,
        piece_bytes: int = _PIECE_BYTES,
    ) -> None:
        self.is_there = True
        self._device = device
        self._storages = _storages([each.weights for each in holdings])
        self._sizes = [storage.nbytes() for storage in self._storages]
        self._pools = [each.pool.tensor for each in holdings]
        self._pool_sizes = [pool.untyped_storage().nbytes() for pool in self._pools]
        self._graphs = [each.graphs for each in holdings if each.graphs is not None]
        self._forgets = [each.forget for each in holdings if each.forget is not None]
        self._parts = _cut(self._sizes, piece_bytes=piece_bytes)
        self._pieces: list[Tensor] = []
        self._taking: Iterator[bool] | None = None
        self._taken_since_s = 0.0
        self._n_needed_bytes = 0

    @property
    def is_given_back(self) -> bool:
        return not self.is_there and self._taking is None

    @property
    def saved_bytes(self) -> int:
        return sum(piece.nbytes for piece in self._pieces)

    @torch.inference_mode()
    def save_next(self) -> bool:
        if len(self._pieces) == len(self._parts):
            return False
        parts = self._parts[len(self._pieces)]
        piece = torch.empty(
            sum(part.n_bytes for part in parts),
            dtype=torch.uint8,
            pin_memory=self._device.type == "cuda",
        )
        for part in parts:
            _within(piece, part).copy_(self._bytes(part), non_blocking=True)
        self._synchronize()
        self._pieces.append(piece)
        return True

    @torch.inference_mode()
    def give_back(self) -> None:
        if self.save_next():
            raise RuntimeError("the weights are not saved yet")
        if not self.is_there:  # what was begun to be taken has nobody's text
            self._give_up()
            return
        for forget in self._forgets:
            forget()
        for pool in self._pools:
            pool.zero_()
        before = self._n_reserved_bytes()
        self._give_up()
        self._n_needed_bytes = before - self._n_reserved_bytes()
        logger.info("asleep: gave back %.1f GiB", self._n_needed_bytes / 2**30)

    def take_next(self) -> None:
        if not self.fill_next():
            self.record_next()

    @torch.inference_mode()
    def fill_next(self) -> bool:
        """Do the next part of taking memory and filling it; return whether there is another one.
        Raises as ``take_next``."""
        if self.is_there:
            return False
        if self._taking is None:
            self._taking, self._taken_since_s = self._take(), time.perf_counter()
        with self._wholly():
            return next(self._taking, False)

    @torch.inference_mode()
    def record_next(self) -> bool:
        """Record the next graph, once all is filled; return whether one was lacking: if not, all is
        there. Raises as ``take_next``."""
        with self._wholly():
            if any(graphs.record_next() for graphs in self._graphs):
                return True
        if not self.is_there:
            self._taking = None
            self.is_there = True
            logger.info("awake after %.1f s", time.perf_counter() - self._taken_since_s)
        return False

    @contextmanager
    def _wholly(self) -> Iterator[None]:
        """Hold nothing where a part of taking it fails."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._give_up()
            logger.warning("cannot wake: %s", error)
            raise Overloaded(
                "the GPU's memory is in use by others", retry_after_s=RETRY_AFTER_S
            ) from error
        except BaseException:
            self._give_up()
            raise

    def _take(self) -> Iterator[bool]:
        self._check_free()
        for storage, size in zip(self._storages, self._sizes, strict=True):
            storage.resize_(size)
        yield True
        for pool, size in zip(self._pools, self._pool_sizes, strict=True):
            pool.untyped_storage().resize_(size)
            # What is there, and is read beside what is wanted, may not be infinite.
            pool.zero_()
        for parts, piece in zip(self._parts, self._pieces, strict=True):
            yield True
            for part in parts:
                self._bytes(part).copy_(_within(piece, part), non_blocking=True)
            self._synchronize()

    def _check_free(self) -> None:
        """Raise unless there is as much as was given back, which graphs and steps need, too."""
        if self._device.type != "cuda":
            return
        free, _ = torch.cuda.mem_get_info()
        if free < self._n_needed_bytes:
            raise torch.OutOfMemoryError(
                f"{self._n_needed_bytes / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free"
            )

    def _give_up(self) -> None:
        self._taking = None
        self.is_there = False
        self._synchronize()
        for graphs in self._graphs:
            graphs.drop()
        for storage in (*self._storages, *(pool.untyped_storage() for pool in self._pools)):
            storage.resize_(0)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _bytes(self, part: _Part) -> Tensor:
        storage = self._storages[part.storage]
        whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        return whole[part.start : part.start + part.n_bytes]

    def _n_reserved_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_reserved()
        return sum(storage.nbytes() for storage in self._storages)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def _within(piece: Tensor, part: _Part) -> Tensor:
    return piece[part.offset : part.offset + part.n_bytes]


def _storages(weights: object) -> list[UntypedStorage]:
    """Return each storage once, in the order in which it is met. One that cannot be emptied stays
    where it is."""
    found: dict[int, UntypedStorage] = {}
    for tensor in tensors_in(weights):
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.resizable():
            found.setdefault(storage.data_ptr(), storage)
    return list(found.values())


def tensors_in(weights: object) -> Iterator[Tensor]:
    """Return the tensors that there are in sequences and dataclasses, however deep."""
    if isinstance(weights, Tensor):
        yield weights
    elif isinstance(weights, list | tuple):
        for each in weights:
            yield from tensors_in(each)
    elif is_dataclass(weights):
        for field in fields(weights):
            yield from tensors_in(getattr(weights, field.name))


def _cut(sizes: SequenceOf[int], *, piece_bytes: int) -> list[list[_Part]]:
    """Return the parts of each piece: the storages, one behind the other, cut at its multiples."""
    pieces: list[list[_Part]] = []
    place = 0
    for storage, size in enumerate(sizes):
        start = 0
        while start < size:
            piece, offset = divmod(place, piece_bytes)
            if piece == len(pieces):
                pieces.append([])
            n_bytes = min(size - start, piece_bytes - offset)
            pieces[piece].append(_Part(storage, start, n_bytes, piece, offset))
            start += n_bytes
            place += n_bytes
    return pieces
