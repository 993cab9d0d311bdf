"""Whole messages over a socket pair, between rank 0 of a tensor-parallel engine and another."""

import socket
import struct
from typing import Final, Generic, TypeVar

import msgspec

from engine_service.runner.rank_messages import encoder

_HEADER: Final = struct.Struct(">I")

_Received = TypeVar("_Received")


def frame(message: msgspec.Struct) -> bytes:
    """Return what ``Channel.send`` sends: one for all ranks that get the same."""
    body = encoder.encode(message)
    return _HEADER.pack(len(body)) + body


class Channel(Generic[_Received]):
    """One end. Its other end is a process of ours on this machine, started from the same code, so
    that what comes is believed."""

    def __init__(self, wire: socket.socket, *, decoder: msgspec.msgpack.Decoder[_Received]) -> None:
        self.wire = wire
        self._decoder = decoder

    def send(self, data: bytes) -> None:
        """Send a frame. Raises OSError where the other end is gone, or takes nothing for the
        socket's timeout."""
        self.wire.sendall(data)

    def receive(self) -> _Received | None:
        """Return the next message, None at the end. Raises TimeoutError after the socket's."""
        header = self._read(_HEADER.size)
        if header is None:
            return None
        (length,) = _HEADER.unpack(header)
        body = self._read(length)
        return None if body is None else self._decoder.decode(body)

    def _read(self, n_bytes: int) -> bytearray | None:
        data = bytearray(n_bytes)
        view = memoryview(data)
        while view:
            try:
                n_read = self.wire.recv_into(view)
            except ConnectionResetError:
                n_read = 0
            if not n_read:
                return None
            view = view[n_read:]
        return data
