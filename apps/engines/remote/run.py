"""One request on its way to a remote server and back."""

import asyncio

from apps.engines.exceptions import EngineClientError, EngineDead
from apps.engines.remote.asking import Asked
from apps.engines.remote.reading import Reading
from apps.engines.stream import EngineStream
from apps.engines.types import AnswerDelta


class Run:
    """Hands on what comes to its stream, which ends once. task: does the asking."""

    def __init__(self, *, asked: Asked, max_new_tokens: int, stream: EngineStream) -> None:
        self.asked = asked
        self.max_new_tokens = max_new_tokens
        self.stream = stream
        self.task: asyncio.Task[None] | None = None
        self._reading = Reading(
            n_answers=asked.n_answers,
            n_prompt_tokens=asked.n_prompt_tokens,
            n_granted_tokens=asked.n_prompt_tokens + asked.n_answers * max_new_tokens,
            stops=asked.stops,
        )

    def take(self, data: bytes) -> None:
        """Hand on what a piece, or the whole, of an answer says; raises EngineFault."""
        for delta in self._reading.read(data):
            self.stream.push(delta)

    def finish(self) -> None:
        """End well; raises EngineDead where an answer is not whole. Idempotent."""
        if not self._reading.is_whole:
            raise EngineDead("the remote server ended before its answer did")
        self.stream.finish(self._reading.result(), last=self._reading.last)

    def abort(self) -> None:
        """End it for its client, with what there is. Idempotent."""
        self.stream.finish(self._reading.aborted(), last=AnswerDelta())
        self._cancel()

    def end(self, error: EngineClientError) -> None:
        """End badly. Idempotent."""
        self.stream.fail(error)
        self._cancel()

    def _cancel(self) -> None:
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()
