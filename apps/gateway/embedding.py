"""Vectors for texts, the same way for every door: route, count, reserve, embed, settle.

The texts are tokenized first, which costs one short round trip: then what is reserved is exactly
what is charged, and what a model cannot take is refused before there is a row.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from django.conf import settings

from apps.core.exceptions import AppError, InvalidRequest
from apps.core.ids import attempt_id, new_id
from apps.engines.client import MAX_EMBED_INPUTS, EmbedInput
from apps.engines.exceptions import EngineClientError, EngineRequestError
from apps.engines.interface import ReplicaClient
from apps.engines.types import EngineInfo
from apps.gateway.demand import embedding_demand, outcome_note
from apps.gateway.exceptions import WRONG_TASK, RequestTimedOut, app_error_of
from apps.gateway.ledger import LedgerEntry
from apps.gateway.limits import Admitted
from apps.gateway.moving import MovableLease
from apps.gateway.quarantine import Dispatched
from apps.gateway.runtime import GatewayRuntime, gateway_runtime
from apps.metering.types import UNHURRIED_DOORS, Budget, Ending, Outcome, Reservation
from apps.rbac.types import Principal

TOKENIZE_TIMEOUT_S: Final = 30.0
VECTOR_NUMBER_BYTES: Final = 4  # float32
ORPHAN_GRACE_S: Final = 60.0  # over its deadline, before the sweeper may close a row


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """is_single: the client sent one input and no list, which errors then name as it did.
    dimensions: how many numbers a vector shall have; None as many as the model gives."""

    endpoint: ClassVar[str] = "embeddings"

    model: str
    inputs: tuple[EmbedInput, ...]
    is_single: bool
    dimensions: int | None
    end_user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingAnswer:
    """vectors: in the order of the inputs, each ``size`` numbers as little-endian float32.
    requests, tokens: what its limits leave, as of a ``GenerationStream``; fallback as well."""

    request_id: str
    model: str
    vectors: tuple[bytes, ...]
    size: int
    n_prompt_tokens: int
    fallback: str | None = None
    requests: Budget | None = None
    tokens: Budget | None = None


async def embed(*, principal: Principal, request: EmbeddingRequest, door: str) -> EmbeddingAnswer:
    """Return the vectors of a request, settled.

    Raises:
        ModelNotFound: no route has that name, or its limits do not allow it.
        LimitExceeded: too many requests, or too little left of a budget.
        InvalidRequest: the model cannot honour it, or its limits; ``param`` names the field.
        RequestQuarantined: engines died of an equal request.
        Overloaded: a bounded queue is full.
        RequestTimedOut: it took longer than one request may take.
        Unavailable: no engine is ready, the ledger cannot be written, or this process is stopping.
    """
    runtime = gateway_runtime()
    runtime.check_admitting()
    access_generation = runtime.access.generation
    await runtime.ready()
    admitted = await runtime.admit(
        principal=principal,
        model=request.model,
        end_user=request.end_user,
        is_counted=door not in UNHURRIED_DOORS,
    )
    lease = runtime.table.lease(
        request.model, principal=principal, demand=embedding_demand(request.inputs)
    )
    return await _Embedding(
        runtime=runtime,
        admitted=admitted,
        movable=MovableLease(runtime.table, lease),
        principal=principal,
        request=request,
        door=door,
        access_generation=access_generation,
    ).run()


class _Embedding:
    """One request from its place, which it gives back, to its settled row; it may have several
    rows, as a generation that is told whole."""

    def __init__(
        self,
        *,
        runtime: GatewayRuntime,
        admitted: Admitted,
        movable: MovableLease,
        principal: Principal,
        request: EmbeddingRequest,
        door: str,
        access_generation: int,
    ) -> None:
        self.request_id = self._first_id = new_id("embd")
        self.principal = principal
        self._runtime = runtime
        self._admitted = admitted
        self._movable = movable
        self._request = request
        self._door = door
        self._access_generation = access_generation
        self._started_s = time.monotonic()
        self._timeout_s = float(settings.GATEWAY_REQUEST_TIMEOUT_S)
        self._deadline = asyncio.timeout(self._timeout_s)
        self._entry: LedgerEntry | None = None
        self._interrupted: AppError | None = None
        self._n_used_tokens = 0
        self._n_rows = 0
        self._dispatched: Dispatched | None = None  # what its engine has
        self._died_with: EngineClientError | None = None

    async def run(self) -> EmbeddingAnswer:
        failure: BaseException | None = None
        try:
            async with self._deadline:
                self._runtime.live.add(self)
                try:
                    return await self._answer()
                finally:
                    self._runtime.live.discard(self)
        except TimeoutError as error:
            failure = self._interrupted or RequestTimedOut()
            raise failure from error
        except EngineClientError as error:
            self._died_with = error
            failure = app_error_of(_named_as_sent(error, request=self._request))
            raise failure from error
        except BaseException as error:
            failure = error
            raise
        finally:
            # To its end also when the client leaves meanwhile.
            await asyncio.shield(self._runtime.spawn(self._close(failure)))

    def interrupt(self, error: AppError) -> None:
        """End it for a reason of ours. Idempotent."""
        if self._interrupted is None and not self._deadline.expired():
            self._interrupted = error
            self._deadline.reschedule(asyncio.get_running_loop().time())

    async def _answer(self) -> EmbeddingAnswer:
        while True:
            try:
                return await self._attempt()
            except EngineClientError as error:
                outcome_note(self._movable.lease.place, error)
                if not await self._moved(error):
                    raise

    async def _moved(self, error: EngineClientError) -> bool:
        """Settle what failed, and go elsewhere; False where that is not to be."""
        lease, entry = self._movable.lease, self._entry
        if not self._movable.move(error, is_begun=entry is not None):
            return False
        self._entry, self._n_used_tokens = None, 0
        self._note_end(error, is_completed=False)

        async def close() -> None:
            try:
                if entry is not None:
                    await entry.settle(self._ending(error))
            finally:
                lease.release()

        await asyncio.shield(self._runtime.spawn(close()))
        return True

    async def _attempt(self) -> EmbeddingAnswer:
        self.request_id = attempt_id(self._first_id, self._n_rows + 1)
        dispatched = Dispatched(
            principal=self.principal,
            request=self._request,
            lease=self._movable.lease,
            request_id=self.request_id,
        )
        await self._runtime.quarantine.check(dispatched)
        client = await self._runtime.engines.client(self._movable.lease.endpoint)
        _check_task(client.info, request=self._request)
        self._dispatched = dispatched
        measured = await client.measure_inputs(
            request_id=self.request_id, inputs=self._request.inputs, timeout_s=TOKENIZE_TIMEOUT_S
        )
        n_prompt_tokens = sum(measured.n_tokens)
        self._entry = LedgerEntry(
            runtime=self._runtime, reservation=self._reservation(n_prompt_tokens)
        )
        self._check_context(measured.n_tokens)
        self._n_rows += 1
        grant = await self._entry.reserve()
        await self._runtime.access.confirm(self.principal, since=self._access_generation)
        vectors = await self._vectors(client, measured.inputs)
        outcome_note(self._movable.lease.place, None)
        size = len(vectors[0]) // VECTOR_NUMBER_BYTES
        _check_size(size, request=self._request)
        lease = self._movable.lease
        return EmbeddingAnswer(
            request_id=self.request_id,
            model=lease.model.name,
            fallback=lease.destination.deployment_name if lease.is_fallback else None,
            vectors=vectors,
            size=size,
            n_prompt_tokens=self._n_used_tokens,
            requests=self._admitted.requests,
            tokens=grant.budget,
        )

    def _check_context(self, sizes: Sequence[int]) -> None:
        cap = self._admitted.max_context_tokens
        for index, n_tokens in enumerate(sizes):
            if cap is not None and n_tokens > cap:
                raise InvalidRequest(
                    f"Your limits allow {cap} tokens of context; this input has {n_tokens}.",
                    code="context_length_exceeded",
                    param="input" if self._request.is_single else f"input[{index}]",
                )

    async def _vectors(
        self, client: ReplicaClient, inputs: tuple[EmbedInput, ...]
    ) -> tuple[bytes, ...]:
        """As many frames as it takes, one after another; the engine is told when this is left."""
        vectors: list[bytes] = []
        for start in range(0, len(inputs), MAX_EMBED_INPUTS):
            result = await client.embed(
                request_id=self.request_id,
                inputs=inputs[start : start + MAX_EMBED_INPUTS],
                timeout_s=self._timeout_s,
            )
            vectors += result.vectors
            self._n_used_tokens += result.n_prompt_tokens
        return tuple(vectors)

    async def _close(self, failure: BaseException | None) -> None:
        try:
            self._note_end(self._died_with, is_completed=failure is None)
            if self._entry is not None:
                await self._entry.settle(self._ending(failure))
        finally:
            self._movable.release()

    def _note_end(self, error: EngineClientError | None, *, is_completed: bool) -> None:
        if self._dispatched is not None:
            self._runtime.quarantine.over(self._dispatched, error, is_completed=is_completed)
            self._dispatched = None

    def _reservation(self, n_prompt_tokens: int) -> Reservation:
        lease = self._movable.lease
        return Reservation(
            rollout_arm=self._movable.lease.destination.arm,
            request_id=self.request_id,
            principal=self.principal,
            end_user=self._request.end_user or "",
            attempt=lease.attempt,
            is_fallback=lease.is_fallback,
            door=self._door,
            endpoint=self._request.endpoint,
            route_name=lease.model.name,
            deployment_id=lease.destination.deployment_id,
            model_version_id=lease.destination.model_version_id,
            engine_name=lease.endpoint.engine_name,
            engine_epoch=lease.endpoint.epoch,
            n_prompt_tokens=n_prompt_tokens,
            n_reserved_tokens=n_prompt_tokens,
            n_least_tokens=n_prompt_tokens,
            scopes=self._admitted.scopes,
            is_open=self._door not in UNHURRIED_DOORS,
            lifetime_s=self._timeout_s + ORPHAN_GRACE_S,
        )

    def _ending(self, failure: BaseException | None) -> Ending:
        outcome, code = Outcome.COMPLETED, ""
        if isinstance(failure, Exception):
            outcome, code = Outcome.FAILED, app_error_of(failure).code
        elif failure is not None:
            outcome, code = Outcome.ABORTED, "client_disconnected"
        return Ending(
            outcome=outcome,
            n_prompt_tokens=self._n_used_tokens if outcome == Outcome.COMPLETED else None,
            n_completion_tokens=0,
            error_code=code,
            total_ms=(time.monotonic() - self._started_s) * 1000,
        )


def _check_task(info: EngineInfo, *, request: EmbeddingRequest) -> None:
    """Refuse what this model cannot give, before anything is asked of it."""
    if info.task != "embed":
        raise InvalidRequest(
            f"The model {request.model!r} does not make embeddings: it generates text.",
            code=WRONG_TASK,
            param="model",
        )
    if info.embedding_size is not None:
        _check_size(info.embedding_size, request=request)


def _check_size(size: int, *, request: EmbeddingRequest) -> None:
    if request.dimensions not in (None, size):
        raise InvalidRequest(
            f"The vectors of this model have {size} dimensions and cannot be shortened: leave "
            f"'dimensions' out, or ask for {size}.",
            code="unsupported_value",
            param="dimensions",
        )


def _named_as_sent(error: EngineClientError, *, request: EmbeddingRequest) -> EngineClientError:
    """Call the one input of a request without a list by the name that its client gave it."""
    if request.is_single and isinstance(error, EngineRequestError) and error.param == "input[0]":
        text = str(error).replace("input[0]", "input", 1)
        return EngineRequestError(text, code=error.code, param="input")
    return error
