"""Cuts what a socket gives into the frames of the protocol."""

from collections.abc import Iterator

from engine_service.protocol import HEADER, frame_length


class FrameBuffer:
    """Cuts a stream of bytes into frame bodies; holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each body that is complete. Raises FrameError at a header that is not allowed."""
        self._data += data
        while len(self._data) >= HEADER.size:
            end = HEADER.size + frame_length(bytes(self._data[: HEADER.size]))
            if len(self._data) < end:
                return
            body = bytes(self._data[HEADER.size : end])
            del self._data[:end]
            yield body
