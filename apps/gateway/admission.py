"""The one way to an engine. Every door calls ``start``, and nothing is dispatched otherwise."""

import time
from dataclasses import dataclass

from django.conf import settings

from apps.core.exceptions import InvalidRequest
from apps.core.ids import new_id
from apps.engines.client import Standing
from apps.engines.exceptions import EngineClientError, EngineDead
from apps.gateway.exceptions import app_error_of
from apps.gateway.generation import GenerationStream
from apps.gateway.limits import Admitted
from apps.gateway.quarantine import Attempt
from apps.gateway.runtime import gateway_runtime
from apps.gateway.types import WEBSOCKET, GenerationRequest
from apps.metering.types import UNHURRIED_DOORS, Reservation
from apps.rbac.types import Principal
from apps.routing.selectors import Lease
from apps.routing.types import cache_tags, person_digest

PREPARE_TIMEOUT_S = 30.0
ORPHAN_GRACE_S = 60.0  # over the request's own deadline, before the sweeper may close its row


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request that its limits allow, with a place on a replica: to be dispatched or released."""

    principal: Principal
    request: GenerationRequest
    door: str
    priority: int
    admitted: Admitted
    lease: Lease
    access_generation: int
    started_s: float

    @property
    def person(self) -> str:
        """Whom the tenant serves by it, where answers and prefixes are kept."""
        return person_digest(self.request.end_user, cache_salt=self.principal.cache_salt)

    def reservation(
        self, *, request_id: str, n_prompt_tokens: int, max_new_tokens: int
    ) -> Reservation:
        """Return what the ledger is to hold for it."""
        target, endpoint = self.lease.target, self.lease.endpoint
        n_answers = self.request.sampling.n
        return Reservation(
            request_id=request_id,
            principal=self.principal,
            end_user=self.request.end_user or "",
            door=self.door,
            endpoint=self.request.endpoint,
            route_name=target.name,
            deployment_id=target.deployment_id,
            model_version_id=target.model_version_id,
            engine_name=endpoint.engine_name,
            engine_epoch=endpoint.epoch,
            n_prompt_tokens=n_prompt_tokens,
            n_reserved_tokens=n_prompt_tokens + n_answers * max_new_tokens,
            n_least_tokens=n_prompt_tokens + n_answers,
            scopes=self.admitted.scopes,
            is_open=self.door not in UNHURRIED_DOORS,
            lifetime_s=float(settings.GATEWAY_REQUEST_TIMEOUT_S) + ORPHAN_GRACE_S,
        )


async def start(
    *, principal: Principal, request: GenerationRequest, door: str, priority: int = 0
) -> GenerationStream:
    """Route, prepare, reserve, dispatch: return the stream of a request that an engine runs.

    priority: of those that wait for an engine, the higher goes first.

    Raises:
        ModelNotFound: no route has that name, or its limits do not allow it.
        LimitExceeded: too many requests, or too little left of a budget.
        InvalidRequest: the engine cannot honour it, or its limits; ``param`` names the field.
        RequestQuarantined: engines died of an equal request.
        Overloaded: a bounded queue is full.
        Unavailable: no engine is ready, the ledger cannot be written, or this process is stopping.
    """
    arrival = await arrive(principal=principal, request=request, door=door, priority=priority)
    return await dispatch(arrival)


async def arrive(
    *, principal: Principal, request: GenerationRequest, door: str, priority: int
) -> Arrival:
    """Check the limits and route; raises as ``start``."""
    started_s = time.monotonic()
    runtime = gateway_runtime()
    access_generation = runtime.access.generation
    runtime.check_admitting()
    await runtime.ready()
    admitted = await runtime.limits.admit(
        principal=principal,
        model=request.model,
        end_user=request.end_user,
        is_counted=door not in UNHURRIED_DOORS,
    )
    return Arrival(
        principal=principal,
        request=request,
        door=door,
        priority=priority,
        admitted=admitted,
        lease=runtime.table.lease(request.model, principal=principal),
        access_generation=access_generation,
        started_s=started_s,
    )


async def dispatch(arrival: Arrival) -> GenerationStream:
    """Prepare, reserve and begin; raises as ``start``, with nothing left behind."""
    max_tokens_param = arrival.request.max_tokens_param
    try:
        stream = await _prepare(arrival)
    except EngineClientError as error:
        arrival.lease.release()
        raise app_error_of(error, max_tokens_param=max_tokens_param) from error
    except BaseException:
        arrival.lease.release()
        raise
    try:
        await stream.open()
    except EngineClientError as error:
        raise app_error_of(error, max_tokens_param=max_tokens_param) from error
    return stream


async def _prepare(arrival: Arrival) -> GenerationStream:
    runtime = gateway_runtime()
    principal, request = arrival.principal, arrival.request
    request_id = new_id(request.id_prefix)
    attempt = Attempt(
        principal=principal, request=request, lease=arrival.lease, request_id=request_id
    )
    await runtime.quarantine.check(attempt)
    client = await runtime.engines.client(arrival.lease.endpoint)
    timeout_s = float(settings.GATEWAY_REQUEST_TIMEOUT_S)
    try:
        prepared = await client.prepare(
            request_id=request_id,
            prompt=request.prompt,
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            cache_salt=principal.cache_salt,
            timeout_s=PREPARE_TIMEOUT_S,
            standing=Standing(
                tenant=str(principal.tenant_id),
                weight=principal.weight,
                priority=arrival.priority,
                deadline_s=timeout_s,
            ),
            cache_tags=cache_tags(principal.tenant_id, arrival.person),
            output_format=request.output_format,
            is_streamed=request.stream or arrival.door == WEBSOCKET,
        )
    except EngineDead as error:
        runtime.quarantine.over(attempt, error, is_completed=False)
        raise
    n_prompt_tokens = prepared.n_prompt_tokens
    try:
        max_new_tokens = _within_context(
            request,
            n_prompt_tokens=n_prompt_tokens,
            max_new_tokens=prepared.max_new_tokens,
            cap=arrival.admitted.max_context_tokens,
        )
    except InvalidRequest:
        client.discard(request_id)  # an engine keeps a bounded number of prompts that wait
        raise
    return GenerationStream(
        runtime=runtime,
        lease=arrival.lease,
        client=client,
        attempt=attempt,
        reservation=arrival.reservation(
            request_id=request_id, n_prompt_tokens=n_prompt_tokens, max_new_tokens=max_new_tokens
        ),
        requests=arrival.admitted.requests,
        n_answers=request.sampling.n,
        max_new_tokens=max_new_tokens,
        access_generation=arrival.access_generation,
        started_s=arrival.started_s,
        timeout_s=timeout_s,
    )


def _within_context(
    request: GenerationRequest, *, n_prompt_tokens: int, max_new_tokens: int, cap: int | None
) -> int:
    """Return how long an answer may be; raises InvalidRequest where the limits allow none, or not
    what was asked for."""
    if cap is None or n_prompt_tokens + max_new_tokens <= cap:
        return max_new_tokens
    if n_prompt_tokens < cap and request.max_tokens is None:
        return cap - n_prompt_tokens
    asked = f" and asks for {request.max_tokens}" if request.max_tokens is not None else ""
    raise InvalidRequest(
        f"Your limits allow {cap} tokens of context. The prompt has {n_prompt_tokens}{asked}.",
        code="context_length_exceeded",
        param=request.max_tokens_param if n_prompt_tokens < cap else None,
    )
