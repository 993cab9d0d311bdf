"""The platform's end of one remote replica, asked as an engine is: ``interface.ReplicaClient``.

Pure asyncio. What an engine counts, a remote server says at the end: until then there is a bound.
"""

import array
import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import aiohttp
from aiohttp.abc import AbstractResolver

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
    EngineRequestError,
)
from apps.engines.remote.asking import (
    EMBEDDINGS,
    Asked,
    asked_of,
    embeddings_body,
    prompt_bound,
)
from apps.engines.remote.link import Link, whole_body
from apps.engines.remote.reading import EventLines, models_of, vectors_of
from apps.engines.remote.run import Run
from apps.engines.stream import EngineStream
from apps.engines.types import (
    EmbeddingResult,
    EngineInfo,
    PreparedRequest,
    RemoteTarget,
    TokenizedPrompt,
)

logger = logging.getLogger(__name__)

_LIFETIME_S: Final = 600.0
_DONE: Final = b"[DONE]"
_AFTERWARDS_S: Final = 0.5


class RemoteClient:
    """One session, shared by any number of requests of one event loop."""

    def __init__(self, target: RemoteTarget, *, resolver: AbstractResolver | None = None) -> None:
        self._target = target
        self._link = Link(target, resolver=resolver)
        self._prepared: dict[str, Asked] = {}
        self._running: dict[str, Run] = {}

    @property
    def is_closed(self) -> bool:
        return self._link.is_closed

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
        self._link.open()

    async def close(self) -> None:
        """Close; every request that still runs ends with EngineDead. Idempotent."""
        for run in list(self._running.values()):
            run.end(EngineDead("the connection was closed here"))
        self._running.clear()
        self._prepared.clear()
        await self._link.close()

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
        cache_tags: tuple[str, ...] = (),
        output_format: OutputFormat | None,
        is_streamed: bool,
    ) -> PreparedRequest:
        """Word the request and bound what it costs; nothing is sent. ``start`` or ``discard``
        follows. What is a server's to check, it is left to.

        Raises:
            EngineRequestError, EngineOverloaded
        """
        self._check_task("generate")
        self._link.check_room()
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
        self._link.check_open()
        stream = EngineStream(request_id, send_abort=self.discard, forget=self._forget)
        run = Run(asked=asked, max_new_tokens=max_new_tokens, stream=stream)
        self._running[request_id] = run
        run.task = asyncio.create_task(self._ask(run))
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
        self._link.check_room()
        bound = sum(map(prompt_bound, inputs))
        body = _encoded(lambda: embeddings_body(model=self._target.model, inputs=inputs))
        async with (
            self._link.translated(),
            asyncio.timeout(timeout_s),
            self._link.posted(EMBEDDINGS, body) as answer,
        ):
            data = await whole_body(answer)
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

    async def purge(self, tag: str, *, timeout_s: float) -> int:
        """Return 0: tags do not go to a remote server, and what it keeps is its own to forget."""
        return 0

    async def look(self, *, timeout_s: float) -> None:
        """See whether the server is there, takes our key and has our model.

        Raises:
            EngineUnresponsive, EngineDead, EngineFault, EngineOverloaded: the text says why not.
        """
        async with (
            self._link.translated(),
            asyncio.timeout(timeout_s),
            self._link.got("models") as answer,
        ):
            models = models_of(await whole_body(answer))
        if self._target.model not in models:
            known = ", ".join(sorted(models)[:5]) or "none"
            raise EngineFault(
                f"the remote server has no model {self._target.model!r}; it has: {known[:300]}"
            )

    # -- one exchange ------------------------------------------------------------------------

    async def _ask(self, run: Run) -> None:
        asked = run.asked
        wait_s = self._target.first_byte_timeout_s if asked.is_streamed else asked.lifetime_s
        try:
            body = _encoded(lambda: asked.body(run.max_new_tokens))
            if not asked.is_streamed:
                run.stream.begin()
            async with (
                self._link.translated(),
                asyncio.timeout(wait_s) as patience,
                self._link.posted(asked.path, body) as answer,
            ):
                if answer.content_type == "text/event-stream":
                    run.stream.begin()
                    await self._follow(answer, run, patience)
                else:
                    run.take(await whole_body(answer))
            run.finish()
        except EngineClientError as error:
            if not run.stream.is_ended:
                logger.info("Remote %s failed: %s", self._target.model, error)
            run.end(error)
        finally:
            self._forget(run.stream.request_id)

    async def _follow(
        self, answer: aiohttp.ClientResponse, run: Run, patience: asyncio.Timeout
    ) -> None:
        """Read events to the end that the server names, or that its answers have. What comes after
        is read too, for a moment: only a connection that was read to its end can be kept."""
        loop, lines = asyncio.get_running_loop(), EventLines()
        async for data in answer.content.iter_any():
            if run.stream.is_ended:
                continue
            patience.reschedule(loop.time() + self._target.idle_timeout_s)
            for event in lines.feed(data):
                if event == _DONE:
                    run.finish()
                    patience.reschedule(loop.time() + _AFTERWARDS_S)
                    break
                run.take(event)

    def _check_task(self, task: str) -> None:
        if self._target.task != task:
            what = "generates text" if task == "embed" else "makes embeddings"
            raise EngineRequestError(
                f"This model {what}: it cannot do what was asked.",
                code="unsupported_task",
                param="model",
            )

    def _forget(self, request_id: str) -> None:
        self._running.pop(request_id, None)


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
