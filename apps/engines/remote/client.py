"""The platform's end of one remote replica, asked as an engine is: ``interface.ReplicaClient``.

Pure asyncio. What an engine counts, a remote server says at the end: until then there is a bound.
"""

import array
import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, NoReturn

import aiohttp
from aiohttp.abc import AbstractResolver

from apps.core.outbound import UnsafeUrl
from apps.engines.client import (
    ChatPrompt,
    EmbedInput,
    MeasuredInputs,
    OutputFormat,
    Prompt,
    SamplingParams,
    Standing,
    TextPrompt,
)
from apps.engines.exceptions import (
    EngineClientError,
    EngineDead,
    EngineFault,
    EngineOverloaded,
    EngineRequestError,
    EngineUnresponsive,
)
from apps.engines.remote.asking import (
    EMBEDDINGS,
    Asked,
    asked_of,
    embeddings_body,
    prompt_bound,
)
from apps.engines.remote.faults import MAX_ERROR_BYTES, fault_of
from apps.engines.remote.reading import MAX_ANSWER_BYTES, EventLines, Reading, models_of, vectors_of
from apps.engines.remote.session import is_encoded, key_of, session_open
from apps.engines.stream import EngineStream
from apps.engines.types import (
    AnswerDelta,
    EmbeddingResult,
    EngineInfo,
    PreparedRequest,
    RemoteTarget,
    TokenizedPrompt,
)

logger = logging.getLogger(__name__)

_LIFETIME_S: Final = 600.0
_DONE: Final = b"[DONE]"
_JSON: Final = {"Content-Type": "application/json"}


class RemoteClient:
    """One session, shared by any number of requests of one event loop."""

    def __init__(self, target: RemoteTarget, *, resolver: AbstractResolver | None = None) -> None:
        self._target = target
        self._url = target.base_url.rstrip("/")
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None
        self._secrets: tuple[str, ...] = ()
        self._prepared: dict[str, Asked] = {}
        self._running: dict[str, _Run] = {}
        self._n_asking = 0

    @property
    def is_closed(self) -> bool:
        return self._session is None

    @property
    def info(self) -> EngineInfo:
        """What is known of who answers, which is little."""
        return EngineInfo(
            epoch=0,
            pid=0,
            model=self._target.model,
            architecture="",
            dtype="unknown",
            device="",
            kernels=f"revision {self._target.revision}",
            backend="remote",
            vocab_size=0,
            max_model_len=self._target.context_length,
            block_size=0,
            n_blocks=0,
            max_sequences=self._target.max_concurrency,
            task=self._target.task,
            embedding_size=None,
            quantization="none",
        )

    async def connect(self) -> None:
        """Get ready to ask; the first request makes the first connection.

        Raises:
            EngineDead: its key or certificates cannot be read, or its URL is refused.
        """
        key = key_of(self._target)
        try:
            self._session = session_open(self._target, key=key, resolver=self._resolver)
        except UnsafeUrl as error:
            raise EngineDead(f"the URL of the remote server is refused: {error}") from None
        host = self._url.partition("://")[2].partition("/")[0]
        self._secrets = (key, host, host.partition(":")[0], self._target.model)

    async def close(self) -> None:
        """Close; every request that still runs ends with EngineDead. Idempotent."""
        session, self._session = self._session, None
        for run in list(self._running.values()):
            run.end(EngineDead("the connection was closed here"))
        self._running.clear()
        self._prepared.clear()
        if session is not None:
            await session.close()

    async def retire(self) -> None:
        """Close once nothing runs any more: the server is still there, only asked otherwise."""
        while tasks := [run.task for run in self._running.values() if run.task is not None]:
            await asyncio.wait(tasks)
        await self.close()

    # -- requests ----------------------------------------------------------------------------

    async def prepare(
        self,
        *,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingParams,
        max_tokens: int | None,
        cache_salt: str,
        timeout_s: float,
        standing: Standing,
        output_format: OutputFormat | None,
        is_streamed: bool,
    ) -> PreparedRequest:
        """Word the request and bound what it costs; nothing is sent. ``start`` or ``discard``
        follows. What is a server's to check, it is left to.

        Raises:
            EngineRequestError, EngineOverloaded
        """
        self._check_task("generate")
        self._check_room()
        asked = asked_of(
            target=self._target,
            prompt=prompt,
            sampling=sampling,
            max_tokens=max_tokens,
            output_format=output_format,
            is_streamed=is_streamed,
            lifetime_s=standing.deadline_s or _LIFETIME_S,
        )
        self._prepared[request_id] = asked
        return PreparedRequest(
            n_prompt_tokens=asked.n_prompt_tokens, max_new_tokens=asked.max_new_tokens
        )

    async def start(self, request_id: str, max_new_tokens: int) -> EngineStream:
        """Ask. Raises EngineDead; every other error comes by the stream."""
        asked = self._prepared.pop(request_id)
        session = self._opened()
        stream = EngineStream(request_id, send_abort=self.discard, forget=self._forget)
        run = _Run(
            asked=asked,
            max_new_tokens=max_new_tokens,
            stream=stream,
        )
        self._running[request_id] = run
        run.task = asyncio.create_task(self._ask(session, run))
        return stream

    def discard(self, request_id: str) -> None:
        """Drop a request in whatever state it is; never waits or raises. The server is left at
        once, which tells it to stop."""
        self._prepared.pop(request_id, None)
        if (run := self._running.pop(request_id, None)) is not None:
            run.abort()

    async def measure_inputs(
        self, *, request_id: str, inputs: Sequence[EmbedInput], timeout_s: float
    ) -> MeasuredInputs:
        """Return the inputs as they are, with bounds. Raises EngineRequestError."""
        self._check_task("embed")
        return MeasuredInputs(
            inputs=tuple(inputs), n_tokens=tuple(prompt_bound(each) for each in inputs)
        )

    async def embed(
        self, *, request_id: str, inputs: Sequence[EmbedInput], timeout_s: float
    ) -> EmbeddingResult:
        """Have a vector made of each input.

        Raises:
            EngineRequestError, EngineOverloaded, EngineFault, EngineUnresponsive, EngineDead
        """
        self._check_room()
        bound = sum(map(prompt_bound, inputs))
        body = _encoded(lambda: embeddings_body(model=self._target.model, inputs=inputs))
        async with (
            self._translated(),
            asyncio.timeout(timeout_s),
            self._posted(self._opened(), EMBEDDINGS, body) as answer,
        ):
            data = await _whole(answer)
        vectors, usage = vectors_of(data, n_inputs=len(inputs))
        n_used = bound if usage is None else max(0, min(usage.prompt_tokens, bound))
        return EmbeddingResult(vectors=tuple(map(_packed, vectors)), n_prompt_tokens=n_used)

    async def tokenize(
        self,
        *,
        request_id: str,
        prompt: ChatPrompt | TextPrompt,
        add_special_tokens: bool | None,
        with_strings: bool,
        timeout_s: float,
    ) -> TokenizedPrompt:
        """Raises EngineRequestError: only the server knows its tokenizer."""
        _no_tokenizer()

    async def detokenize(
        self, *, request_id: str, token_ids: Sequence[int], timeout_s: float
    ) -> str:
        """Raises EngineRequestError, as ``tokenize``."""
        _no_tokenizer()

    async def look(self, *, timeout_s: float) -> None:
        """See whether the server is there, takes our key and has our model.

        Raises:
            EngineUnresponsive, EngineDead, EngineFault, EngineOverloaded: the text says why not.
        """
        session = self._opened()
        async with (
            self._translated(),
            asyncio.timeout(timeout_s),
            session.get(f"{self._url}/models", allow_redirects=False) as answer,
        ):
            await self._check(answer)
            models = models_of(await _whole(answer))
        if self._target.model not in models:
            known = ", ".join(sorted(models)[:5]) or "none"
            raise EngineFault(
                f"the remote server has no model {self._target.model!r}; it has: {known[:300]}"
            )

    # -- one exchange ------------------------------------------------------------------------

    async def _ask(self, session: aiohttp.ClientSession, run: "_Run") -> None:
        asked = run.asked
        wait_s = self._target.first_byte_timeout_s if asked.is_streamed else asked.lifetime_s
        try:
            body = _encoded(lambda: asked.body(run.max_new_tokens))
            if not asked.is_streamed:
                run.stream.begin()
            async with (
                self._translated(),
                asyncio.timeout(wait_s) as patience,
                self._posted(session, asked.path, body) as answer,
            ):
                if answer.content_type == "text/event-stream":
                    run.stream.begin()
                    await self._follow(answer, run, patience)
                else:
                    for delta in run.reading.read(await _whole(answer)):
                        run.stream.push(delta)
            run.finish()
        except EngineClientError as error:
            logger.info("Remote %s failed: %s", self._target.model, error)
            run.end(error)
        finally:
            self._forget(run.stream.request_id)

    async def _follow(
        self, answer: aiohttp.ClientResponse, run: "_Run", patience: asyncio.Timeout
    ) -> None:
        """Read events to the end that the server names, or that its answers have."""
        loop, lines = asyncio.get_running_loop(), EventLines()
        async for data in answer.content.iter_any():
            patience.reschedule(loop.time() + self._target.idle_timeout_s)
            for event in lines.feed(data):
                if event == _DONE:
                    return
                for delta in run.reading.read(event):
                    run.stream.push(delta)

    @asynccontextmanager
    async def _posted(
        self, session: aiohttp.ClientSession, path: str, body: bytes
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; raises EngineClientError for an answer that is none."""
        self._n_asking += 1
        try:
            async with session.post(
                f"{self._url}/{path}", data=body, headers=_JSON, allow_redirects=False
            ) as answer:
                await self._check(answer)
                yield answer
        finally:
            self._n_asking -= 1

    async def _check(self, answer: aiohttp.ClientResponse) -> None:
        if is_encoded(answer.headers):
            raise EngineFault("the remote server compressed its answer unasked")
        if answer.status != 200:
            raise fault_of(
                answer.status,
                await answer.content.read(MAX_ERROR_BYTES),
                retry_after=answer.headers.get("Retry-After"),
                secrets=self._secrets,
            )

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """Raise what goes wrong on the way as what it is to a caller; details are for the log."""
        try:
            yield
        except TimeoutError as error:
            is_full = self._n_asking >= self._target.max_concurrency
            if isinstance(error, aiohttp.ConnectionTimeoutError) and is_full:
                text = "no connection to the remote server came free in time"
                raise EngineOverloaded(text, retry_after_s=1.0) from error
            raise EngineUnresponsive("the remote server was silent for too long") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EngineDead(f"the remote server is gone: {error!r}") from error

    def _check_room(self) -> None:
        """Refuse what would wait behind more than one round of those that run."""
        if self._n_asking >= 2 * self._target.max_concurrency:
            raise EngineOverloaded("too many requests wait for the remote server", retry_after_s=1)

    def _check_task(self, task: str) -> None:
        if self._target.task != task:
            what = "generates text" if task == "embed" else "makes embeddings"
            raise EngineRequestError(
                f"This model {what}: it cannot do what was asked.",
                code="unsupported_task",
                param="model",
            )

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineDead("the connection was closed here")
        return self._session

    def _forget(self, request_id: str) -> None:
        self._running.pop(request_id, None)


class _Run:
    """One request on its way."""

    def __init__(self, *, asked: Asked, max_new_tokens: int, stream: EngineStream) -> None:
        self.asked = asked
        self.max_new_tokens = max_new_tokens
        self.stream = stream
        self.task: asyncio.Task[None] | None = None
        self.reading = Reading(
            n_answers=asked.n_answers,
            n_prompt_tokens=asked.n_prompt_tokens,
            n_granted_tokens=asked.n_prompt_tokens + asked.n_answers * max_new_tokens,
            stops=asked.stops,
        )

    def finish(self) -> None:
        if not self.reading.is_whole:
            raise EngineDead("the remote server ended before its answer did")
        self.stream.finish(self.reading.result(), last=self.reading.last)

    def abort(self) -> None:
        """End it for its client, with what there is."""
        self.stream.finish(self.reading.aborted(), last=AnswerDelta())
        self._cancel()

    def end(self, error: EngineClientError) -> None:
        self.stream.fail(error)
        self._cancel()

    def _cancel(self) -> None:
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for part in answer.content.iter_any():
        data += part
        if len(data) > MAX_ANSWER_BYTES:
            raise EngineFault("the remote server sends more than an answer can be")
    return bytes(data)


def _encoded(make: Callable[[], bytes]) -> bytes:
    """Return a body; raises EngineRequestError for a text that no JSON can hold."""
    try:
        return make()
    except (UnicodeEncodeError, OverflowError) as error:
        raise EngineRequestError(
            f"The request cannot be passed on: {error}", code="invalid_value", param=None
        ) from error


def _packed(vector: Sequence[float]) -> bytes:
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _no_tokenizer() -> NoReturn:
    raise EngineRequestError(
        "The tokenizer of this model is not here: it is served elsewhere.",
        code="unsupported_task",
        param="model",
    )
