"""What rank 0 of a tensor-parallel engine and the others say to each other.

A rank is set up, says that it is there, loads, and says so; then it does what it is told, in that
order. Of steps it says nothing: its part of the answers is in rank 0's tensors. Each part of giving
its device's memory back or taking that again it answers, and what it does with its disk.
"""

from array import array
from pathlib import Path
from typing import Any, Final

import msgspec

from engine_service.config import EngineConfig
from engine_service.runner.step_packing import PackedStep


class SetUp(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """rendezvous: number of the file where the ranks meet, which the process has open."""

    rank: int
    rendezvous: int
    engine: EngineConfig


class Pool(msgspec.Struct, frozen=True, tag=True):
    """The KV pool is to have so many blocks."""

    n_blocks: int


class Step(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A ``PackedStep``, its numbers as bytes."""

    n_tokens: int
    n_rows: int
    n_single: int
    n_logits: int
    n_updates: int
    max_query_len: int
    max_context_len: int
    is_decode: bool
    draws_plainly: bool
    numbers: bytes

    @classmethod
    def of(cls, step: PackedStep) -> "Step":
        sizes = {name: getattr(step, name) for name in cls.__struct_fields__[:-1]}
        return cls(**sizes, numbers=step.numbers.tobytes())

    def packed(self) -> PackedStep:
        sizes = {name: getattr(self, name) for name in self.__struct_fields__[:-1]}
        numbers = array("i")
        numbers.frombytes(self.numbers)
        return PackedStep(**sizes, numbers=numbers)


class Logits(msgspec.Struct, frozen=True, tag=True):
    """Of so many states, which rank 0 shares next."""

    n_rows: int


class Clear(msgspec.Struct, frozen=True, tag=True):
    blocks: list[int]


class Copy(msgspec.Struct, frozen=True, tag=True):
    """pairs: from and to."""

    pairs: list[tuple[int, int]]


class Save(msgspec.Struct, frozen=True, tag=True):
    """As ``DeviceMemory.save_next``; each of these four is answered by ``Held``."""


class GiveBack(msgspec.Struct, frozen=True, tag=True):
    """As ``DeviceMemory.give_back``."""


class Fill(msgspec.Struct, frozen=True, tag=True):
    """As ``DeviceMemory.fill_next``."""


class Record(msgspec.Struct, frozen=True, tag=True):
    """As ``DeviceMemory.record_next``, which all do at once: graphs have sums of all ranks."""


MemoryPart = Save | GiveBack | Fill | Record


class Spill(msgspec.Struct, frozen=True, tag=True):
    """pairs: from a block of the pool, and to a host slot. As ``TierStore.spill``, and so on."""

    pairs: list[tuple[int, int]]


class Load(msgspec.Struct, frozen=True, tag=True):
    """pairs: from a host slot, and to a block of the pool."""

    pairs: list[tuple[int, int]]


class EraseHost(msgspec.Struct, frozen=True, tag=True):
    slots: list[int]


class EraseDisk(msgspec.Struct, frozen=True, tag=True):
    slots: list[int]


class Write(msgspec.Struct, frozen=True, tag=True):
    """Answered by ``Stored``."""

    host_slot: int
    disk_slot: int
    digest: bytes


class Read(msgspec.Struct, frozen=True, tag=True):
    """Answered by ``Stored``."""

    disk_slot: int
    host_slot: int
    digest: bytes


TierPart = Spill | Load | EraseHost | EraseDisk | Write | Read
ToRank = SetUp | Pool | Step | Logits | Clear | Copy | MemoryPart | TierPart


class Started(msgspec.Struct, frozen=True, tag=True):
    """The rank is about to join the group, which waits for all."""


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """n_blocks: so many of the KV pool's it has room for."""

    n_blocks: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """All that it needs it has."""


class Held(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a rank has of its device's memory now, as ``DeviceMemory``. has_more: there is more of
    what it was told to do. lacks: why that could not be done, for lack of memory; else None."""

    is_there: bool
    is_given_back: bool
    saved_bytes: int
    has_more: bool = False
    lacks: str | None = None


class Stored(msgspec.Struct, frozen=True, tag=True):
    """is_done: the block is written, now or later, or read. n_failed_writes: since the start."""

    is_done: bool
    n_failed_writes: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The rank ends. is_model_error: starting again will not help."""

    message: str
    is_model_error: bool


FromRank = Started | Loaded | Ready | Held | Stored | Failed


def _encode_other(value: Any) -> str:
    """Encode what msgpack has no form for: of what is sent, paths."""
    if not isinstance(value, Path):
        raise NotImplementedError(f"{type(value)} is not sent to ranks")
    return str(value)


def _decode_other(kind: type, value: Any) -> Any:
    return kind(value)


encoder: Final = msgspec.msgpack.Encoder(enc_hook=_encode_other)
to_rank_decoder: Final[msgspec.msgpack.Decoder[ToRank]] = msgspec.msgpack.Decoder(
    ToRank, dec_hook=_decode_other
)
from_rank_decoder: Final[msgspec.msgpack.Decoder[FromRank]] = msgspec.msgpack.Decoder(FromRank)
