"""Joins connections, the frontend and the step thread; owns every live request and draining."""

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from engine_service.backends.base import (
    EmbeddingRequest,
    EngineRequest,
    ModelInfo,
    SequenceOutput,
)
from engine_service.errors import EngineError, Overloaded
from engine_service.frontend import Frontend, PreparedPrompt
from engine_service.journal import Journal, LiveRequest
from engine_service.protocol import (
    PROTOCOL_VERSION,
    Embed,
    EngineStats,
    Ping,
    Pong,
    Prepare,
    Purge,
    Purged,
    Start,
    TextAnswer,
    TextQuestion,
    Welcome,
)
from engine_service.protocol.journal import CONNECTION_LOST
from engine_service.server.connection import Connection
from engine_service.server.embedding import Embedding
from engine_service.server.generation import Generation, Outbox, Update
from engine_service.server.limits import Limits
from engine_service.server.listening import SocketFile

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CLOSED_CHECK_S = 0.1


class StepEngine(Protocol):
    """What the service needs of the engine; every call returns at once, from any thread."""

    def submit(self, request: EngineRequest | EmbeddingRequest) -> None: ...

    def abort(self, key: int, *, choice: int | None = None) -> None: ...

    def ping(
        self, callback: Callable[[EngineStats], None], *, may_hold_memory: bool | None = None
    ) -> None: ...

    def purge(self, tag: str, callback: Callable[[int], None]) -> None: ...


@dataclass(slots=True)
class _Live:
    """A request that runs. entry: its place in the journal. is_lost: its client's connection is."""

    connection: Connection
    work: Generation | Embedding
    entry: LiveRequest | None = None
    is_lost: bool = False


class EngineService:
    """Runs on the event loop; ``on_outputs`` alone is called by the step thread.

    Make it inside the running loop, hand ``on_outputs`` to the engine, then ``listen``.
    journal: gets a record of each request before its client gets the terminal, and of its tokens
    so far before they are sent; None keeps no record.
    """

    def __init__(
        self,
        *,
        frontend: Frontend,
        info: ModelInfo,
        epoch: int,
        limits: Limits | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.epoch = epoch
        self.limits = limits or Limits()
        self._frontend = frontend
        self._journal = journal
        self._info = info
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._alone = asyncio.Event()
        self._live: dict[int, _Live] = {}
        self._keys = itertools.count(1)
        self._n_preparing = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._drain_s: float | None = None
        self._engine: StepEngine | None = None
        self._server: asyncio.Server | None = None
        self._closed = False
        self._undelivered = threading.Semaphore(self.limits.max_undelivered_steps)

    # -- life --------------------------------------------------------------------------------

    async def listen(self, engine: StepEngine, path: Path) -> SocketFile:
        """Bind and accept; from now on the process is ready. The caller removes the file."""
        self._engine = engine
        file = SocketFile(path)
        self._server = await self._loop.create_unix_server(
            lambda: Connection(self), sock=file.socket
        )
        return file

    async def drain(self, grace_s: float) -> None:
        """Refuse new work and wait for what runs, ``grace_s`` at most; then end the rest."""
        self._drain_s = grace_s
        logger.info("draining: %d requests, %g s at most", len(self._live), grace_s)
        try:
            await asyncio.wait_for(self._idle.wait(), timeout=grace_s)
        except TimeoutError:
            self.fail_all(EngineError("the engine stopped before the answer was complete"))

    def fail_all(self, error: EngineError) -> None:
        """Give every live request its terminal now."""
        outboxes: dict[Connection, Outbox] = {}
        for key, live in list(self._live.items()):
            self._settle(key, live, live.work.fail(error), outboxes)
            self._need_engine().abort(key)
        self._flush(outboxes)

    async def close(self) -> None:
        """Stop accepting and close every connection once its client has read what is queued."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
        if self._connections:
            # Each is cut after close_timeout_s at the latest.
            await self._alone.wait()
        self._frontend.close()

    # -- connections -------------------------------------------------------------------------

    def opened(self, connection: Connection) -> Overloaded | None:
        """Register a connection, or say why it cannot be."""
        self._connections.add(connection)
        self._alone.clear()
        if len(self._connections) > self.limits.max_connections:
            return Overloaded("too many connections", retry_after_s=1.0)
        return None

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        if not self._connections:
            self._alone.set()

    def welcome(self) -> Welcome:
        """Say who is here."""
        info = self._info
        return Welcome(
            protocol_version=PROTOCOL_VERSION,
            epoch=self.epoch,
            pid=os.getpid(),
            model=info.name,
            architecture=info.architecture,
            dtype=info.dtype,
            device=info.device,
            kernels=info.kernels,
            backend=info.backend,
            vocab_size=info.vocab_size,
            max_model_len=info.max_model_len,
            block_size=info.block_size,
            n_blocks=info.n_blocks,
            max_sequences=info.max_sequences,
            task=info.task,
            embedding_size=info.embedding_size,
            quantization=info.quantization,
            kv_cache_dtype=info.kv_cache_dtype,
        )

    # -- requests ----------------------------------------------------------------------------

    def refusal(self) -> Overloaded | None:
        """Return why no new request can be taken, if so."""
        if self._drain_s is not None:
            return Overloaded("the engine is stopping", retry_after_s=self._drain_s)
        if self._n_preparing >= self.limits.max_preparing:
            return Overloaded("too many prompts are being prepared", retry_after_s=1.0)
        return None

    async def prepare(self, message: Prepare) -> PreparedPrompt:
        """Have the frontend do it; whatever goes wrong is an EngineError of this request."""
        return await self._prepared(self._frontend.prepare(message))

    async def prepare_inputs(self, message: Embed) -> tuple[tuple[int, ...], ...]:
        """Do the same for the texts of an embedding request."""
        return await self._prepared(self._frontend.prepare_inputs(message))

    async def answer(self, question: TextQuestion) -> TextAnswer:
        """Have the frontend answer a question about text."""
        return await self._prepared(self._frontend.answer(question))

    async def _prepared(self, preparation: Coroutine[Any, Any, T]) -> T:
        self._n_preparing += 1
        try:
            return await preparation
        except EngineError:
            raise
        except Exception as error:
            logger.exception("preparing a prompt failed")
            raise EngineError("the engine could not prepare this request") from error
        finally:
            self._n_preparing -= 1

    def start(
        self, connection: Connection, *, request_id: str, prompt: PreparedPrompt, start: Start
    ) -> int:
        """Hand a request to the step thread and return its key. Raises Overloaded."""
        key = next(self._keys)
        generation = Generation(self._frontend, request_id=request_id, prompt=prompt)
        request = EngineRequest(
            key=key,
            prompt_token_ids=prompt.token_ids,
            sampling=prompt.sampling,
            max_new_tokens=start.max_new_tokens,
            cache_salt=prompt.cache_salt,
            cache_tags=prompt.cache_tags,
            standing=prompt.standing,
            mask=None if prompt.constraint is None else prompt.constraint.mask(),
        )
        return self._submit(request, live=_Live(connection, generation))

    def embed(
        self, connection: Connection, *, request_id: str, inputs: tuple[tuple[int, ...], ...]
    ) -> int:
        """Hand an embedding request to the step thread and return its key. Raises Overloaded."""
        n_prompt_tokens = sum(len(token_ids) for token_ids in inputs)
        embedding = Embedding(request_id=request_id, n_prompt_tokens=n_prompt_tokens)
        request = EmbeddingRequest(key=next(self._keys), inputs=inputs)
        return self._submit(request, live=_Live(connection, embedding))

    def _submit(self, request: EngineRequest | EmbeddingRequest, *, live: _Live) -> int:
        if self._drain_s is not None:
            raise Overloaded("the engine is stopping", retry_after_s=self._drain_s)
        if self._journal is not None:
            live.entry = self._journal.begin(
                key=request.key,
                request_id=live.work.request_id,
                n_prompt_tokens=live.work.n_prompt_tokens,
            )
        try:
            self._need_engine().submit(request)
        except EngineError:
            if self._journal is not None and live.entry is not None:
                self._journal.drop(live.entry)
            raise
        self._live[request.key] = live
        self._idle.clear()
        return request.key

    def abort(self, key: int) -> None:
        """Stop a started request; its terminal comes from a later step."""
        if key in self._live:
            self._need_engine().abort(key)

    def lose(self, key: int) -> None:
        """Stop a started request whose connection is gone."""
        if (live := self._live.get(key)) is not None:
            live.is_lost = True
            self.abort(key)

    def ping(self, connection: Connection, message: Ping) -> None:
        """Send a round trip through the step thread."""

        def answered(stats: EngineStats) -> None:
            self._call(self._pong, connection, message.nonce, stats)

        self._need_engine().ping(answered, may_hold_memory=message.may_hold_memory)

    def _pong(self, connection: Connection, nonce: int, stats: EngineStats) -> None:
        draining = self._drain_s is not None
        connection.pong(Pong(nonce=nonce, epoch=self.epoch, stats=stats, draining=draining))

    def purge(self, connection: Connection, message: Purge) -> None:
        """Have the step thread forget what it keeps of a tag."""

        def purged(n_blocks: int) -> None:
            answer = Purged(nonce=message.nonce, epoch=self.epoch, n_blocks=n_blocks)
            self._call(connection.pong, answer)

        self._need_engine().purge(message.tag, purged)

    # -- steps -------------------------------------------------------------------------------

    def on_outputs(self, outputs: Sequence[SequenceOutput]) -> None:
        """Called by the step thread once a step: one hop to the loop for all of it.

        Waits while the loop is ``max_undelivered_steps`` behind, so that steps faster than the loop
        neither pile up nor starve it.
        """
        while not self._undelivered.acquire(timeout=_CLOSED_CHECK_S):
            if self._closed:
                return
        self._call(self._deliver, outputs)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        if not self._closed:
            self._loop.call_soon_threadsafe(function, *args)

    def _deliver(self, outputs: Sequence[SequenceOutput]) -> None:
        self._undelivered.release()
        outboxes: dict[Connection, Outbox] = {}
        for output in outputs:
            live = self._live.get(output.key)
            if live is None:
                continue  # ended by a stop string or by draining; the abort is on its way
            update = self._update(live, output)
            if live.entry is not None and (output.token_ids or output.vectors):
                live.entry.note(
                    n_cached_tokens=live.work.n_cached_tokens,
                    n_completion_tokens=live.work.n_completion_tokens,
                    step=output.step,
                    waited_s=output.waited_s,
                )
            self._settle(output.key, live, update, outboxes)
            if output.finish_reason is not None or output.error is not None:
                continue
            if update.failed is not None:
                self._need_engine().abort(output.key)
            elif update.ends_choice:
                self._need_engine().abort(output.key, choice=output.choice)
        self._flush(outboxes)

    def _update(self, live: _Live, output: SequenceOutput) -> Update:
        try:
            return live.work.update(output)
        except Exception:  # the other requests of the step must get theirs
            logger.exception("detokenizing request %s failed", live.work.request_id)
            return live.work.fail(EngineError("the engine could not decode its tokens"))

    def _settle(
        self, key: int, live: _Live, update: Update, outboxes: dict[Connection, Outbox]
    ) -> None:
        outbox = outboxes.get(live.connection)
        if outbox is None:
            outbox = outboxes[live.connection] = Outbox()
        outbox.add(update)
        if update.is_last:
            self._record(live, update)
            del self._live[key]
            live.connection.ended(live.work.request_id)
            if not self._live:
                self._idle.set()

    def _record(self, live: _Live, update: Update) -> None:
        if self._journal is None or live.entry is None:
            return
        is_cut = live.is_lost and update.finish_reason in ("", "abort")
        self._journal.end(
            live.entry,
            n_cached_tokens=live.work.n_cached_tokens,
            n_completion_tokens=live.work.n_completion_tokens,
            finish_reason=update.finish_reason,
            error_code=CONNECTION_LOST if is_cut else update.error_code,
        )

    def _flush(self, outboxes: dict[Connection, Outbox]) -> None:
        if self._journal is not None:
            self._journal.flush()
        for connection, outbox in outboxes.items():
            connection.deliver(outbox)

    def _need_engine(self) -> StepEngine:
        if self._engine is None:
            raise RuntimeError("the service does not listen yet")
        return self._engine
