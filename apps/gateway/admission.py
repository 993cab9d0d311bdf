"""The one way to an engine. Every door calls ``start``, and nothing is dispatched otherwise."""

import time

from django.conf import settings

from apps.core.exceptions import InvalidRequest
from apps.core.ids import new_id
from apps.engines.client import Standing
from apps.engines.exceptions import EngineClientError
from apps.gateway.exceptions import app_error_of
from apps.gateway.generation import GenerationStream
from apps.gateway.limits import UNHURRIED_DOORS, Admitted
from apps.gateway.runtime import gateway_runtime
from apps.gateway.types import GenerationRequest
from apps.metering.types import Reservation
from apps.rbac.types import Principal
from apps.routing.selectors import Lease

PREPARE_TIMEOUT_S = 30.0
ORPHAN_GRACE_S = 60.0  # over the request's own deadline, before the sweeper may close its row


async def start(
    *, principal: Principal, request: GenerationRequest, door: str, priority: int = 0
) -> GenerationStream:
    """Route, prepare, reserve, dispatch: return the stream of a request that an engine runs.

    priority: of those that wait for an engine, the higher goes first.

    Raises:
        ModelNotFound: no route has that name, or its limits do not allow it.
        LimitExceeded: too many requests, or too little left of a budget.
        InvalidRequest: the engine cannot honour it, or its limits; ``param`` names the field.
        Overloaded: a bounded queue is full.
        Unavailable: no engine is ready, the ledger cannot be written, or this process is stopping.
    """
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
    lease = runtime.table.lease(request.model, principal=principal)
    try:
        stream = await _prepare(
            admitted=admitted,
            principal=principal,
            request=request,
            door=door,
            priority=priority,
            lease=lease,
            access_generation=access_generation,
            started_s=started_s,
        )
    except EngineClientError as error:
        lease.release()
        raise app_error_of(error, max_tokens_param=request.max_tokens_param) from error
    except BaseException:
        lease.release()
        raise
    try:
        await stream.open()
    except EngineClientError as error:
        raise app_error_of(error) from error
    return stream


async def _prepare(
    *,
    admitted: Admitted,
    principal: Principal,
    request: GenerationRequest,
    door: str,
    priority: int,
    lease: Lease,
    access_generation: int,
    started_s: float,
) -> GenerationStream:
    runtime = gateway_runtime()
    endpoint, target = lease.endpoint, lease.target
    request_id = new_id(request.id_prefix)
    client = await runtime.engines.client(endpoint)
    timeout_s = float(settings.GATEWAY_REQUEST_TIMEOUT_S)
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
            priority=priority,
            deadline_s=timeout_s,
        ),
        output_format=request.output_format,
    )
    n_prompt_tokens, n_answers = prepared.n_prompt_tokens, request.sampling.n
    try:
        max_new_tokens = _within_context(
            request,
            n_prompt_tokens=n_prompt_tokens,
            max_new_tokens=prepared.max_new_tokens,
            cap=admitted.max_context_tokens,
        )
    except InvalidRequest:
        client.discard(request_id)  # an engine keeps a bounded number of prompts that wait
        raise
    return GenerationStream(
        runtime=runtime,
        lease=lease,
        client=client,
        reservation=Reservation(
            request_id=request_id,
            principal=principal,
            end_user=request.end_user or "",
            door=door,
            endpoint=request.endpoint,
            route_name=target.name,
            deployment_id=target.deployment_id,
            model_version_id=target.model_version_id,
            engine_name=endpoint.engine_name,
            engine_epoch=endpoint.epoch,
            n_prompt_tokens=n_prompt_tokens,
            n_reserved_tokens=n_prompt_tokens + n_answers * max_new_tokens,
            n_least_tokens=n_prompt_tokens + n_answers,
            scopes=admitted.scopes,
            is_open=door not in UNHURRIED_DOORS,
            lifetime_s=timeout_s + ORPHAN_GRACE_S,
        ),
        requests=admitted.requests,
        n_answers=n_answers,
        max_new_tokens=max_new_tokens,
        access_generation=access_generation,
        started_s=started_s,
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
