"""Large frames go out one after another, as the reader takes them."""

from engine_service.server.frame_buffer import FrameQueue


class Pipe:
    """Full after ``room`` frames, until it is emptied."""

    def __init__(self, queue: FrameQueue, *, room: int) -> None:
        self.written: list[bytes] = []
        self._queue, self._room, self._n = queue, room, 0
        queue.write = self.write

    def write(self, frame: bytes) -> None:
        self.written.append(frame)
        self._n += 1
        if self._n == self._room:
            self._queue.pause()

    def empty(self) -> None:
        self._n = 0
        self._queue.resume()


def test_frames_wait_for_their_turn_and_keep_their_order() -> None:
    queue = FrameQueue()
    pipe = Pipe(queue, room=2)
    frames = [bytes([number]) * 3 for number in range(5)]
    for frame in frames:
        queue.add(frame)
    assert (pipe.written, queue.n_bytes) == (frames[:2], 9)
    pipe.empty()
    assert (pipe.written, queue.n_bytes) == (frames[:4], 3)
    pipe.empty()
    assert (pipe.written, queue.n_bytes) == (frames, 0)


def test_the_last_ones_are_flushed_whatever_was_read() -> None:
    queue = FrameQueue()
    pipe = Pipe(queue, room=1)
    for number in range(4):
        queue.add(bytes([number]))
    queue.flush()
    assert pipe.written == [bytes([number]) for number in range(4)]
    assert queue.n_bytes == 0
