"""Cuts what a socket gives into the frames of the protocol, and hands large ones out by turns."""

from collections import deque
from collections.abc import Callable, Iterator

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


class FrameQueue:
    """Frames that are written one after another, each once the reader has taken those before.

    write: where they go. A transport says when to ``pause`` and ``resume``.
    """

    def __init__(self) -> None:
        self.write: Callable[[bytes], None] | None = None
        self.n_bytes = 0  # of frames that wait
        self._frames: deque[bytes] = deque()
        self._is_paused = False

    def add(self, frame: bytes) -> None:
        """Write it now, or when its turn comes."""
        self._frames.append(frame)
        self.n_bytes += len(frame)
        self._advance()

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False
        self._advance()

    def flush(self) -> None:
        """Write all that waits: nothing comes after it."""
        while self._frames:
            self._write_next()

    def _advance(self) -> None:
        while self._frames and not self._is_paused:
            self._write_next()

    def _write_next(self) -> None:
        frame = self._frames.popleft()
        self.n_bytes -= len(frame)
        if self.write is not None:
            self.write(frame)
