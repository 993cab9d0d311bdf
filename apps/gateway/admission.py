"""The one way to an engine. Every door calls ``start``, and nothing is dispatched otherwise."""

import asyncio
import time
from dataclasses import dataclass
from sys import maxsize
from typing import Final

from django.conf import settings

from apps.core.exceptions import InvalidRequest
from apps.core.ids import attempt_id, new_id
from apps.engines.client import Standing
from apps.engines.exceptions import EngineDead, EngineRequestError
from apps.experiments.types import Enrolment
from apps.gateway.attempt import Attempt
from apps.gateway.demand import generation_demand, outcome_note
from apps.gateway.exceptions import RequestQuarantined
from apps.gateway.experimenting import enrolment_of, templated, with_defaults
from apps.gateway.generation import GenerationStream
from apps.gateway.judged import JudgedStream, has_text
from apps.gateway.limits import Admitted
from apps.gateway.moving import MovableLease
from apps.gateway.quarantine import Dispatched
from apps.gateway.runtime import gateway_runtime
from apps.gateway.types import WEBSOCKET, GenerationRequest
from apps.judging.types import Sampling
from apps.metering.types import UNHURRIED_DOORS, Reservation
from apps.rbac.types import Principal
from apps.routing.selectors import Lease, counted_new_tokens
from apps.routing.types import cache_tags, person_digest

PREPARE_TIMEOUT_S: Final = 30.0
ORPHAN_GRACE_S: Final = (
    60.0  # over the request's own deadline, before the sweeper may close its row
)


@dataclass(slots=True, kw_only=True)
class Arrival:
    """A request that its limits allow, with a place on a replica: to be dispatched or released.

    request: with what experiments make of it and its route's defaults. enrolment: in which it takes
    part; own: the request without them, while it is not yet as that. request_id: of the row for the
    first engine that it was reserved at; n_rows: how many there are.
    """

    principal: Principal
    request: GenerationRequest
    request_id: str
    door: str
    priority: int
    admitted: Admitted
    movable: MovableLease
    access_generation: int
    started_s: float
    deadline_s: float
    enrolment: Enrolment | None = None
    own: GenerationRequest | None = None
    n_rows: int = 0
    is_own: bool = False

    @property
    def person(self) -> str:
        """Whom the tenant serves by it, where answers and prefixes are kept."""
        return person_digest(self.request.end_user, cache_salt=self.principal.cache_salt)

    @property
    def as_sent(self) -> GenerationRequest:
        """As ``Attempts``: what experiments make of a prompt is in ``request`` alone."""
        return self.own or self.request

    @property
    def judges(self) -> tuple[Sampling, ...]:
        """As ``Attempts``; none where its tenant does not allow it, or there is nothing to read."""
        if self.enrolment is None or not self.enrolment.judges:
            return ()
        is_readable = self.principal.allows_judging and has_text(self.as_sent)
        return self.enrolment.judges if is_readable else ()

    @property
    def is_whole(self) -> bool:
        """Its client is told nothing before the end."""
        return not self.request.stream and self.door != WEBSOCKET

    @property
    def lease(self) -> Lease:
        return self.movable.lease

    async def prepared(self) -> Attempt:
        """As ``Attempts``; the lease is given back where it raises."""
        while True:
            lease = self.lease
            try:
                return await _prepare(self)
            except (EngineRequestError, InvalidRequest, RequestQuarantined):
                is_own = self.make_own()
                lease.release()
                if not is_own:
                    raise
            except BaseException as error:
                outcome_note(lease.place, error)
                lease.release()
                raise

    def make_own(self) -> bool:
        """Go on as if no experiment had a say, at a place that the route leads to; the lease before
        is still to be released. False where none had, or that is done, or there is no such place.

        Its row still names its arms: who was meant to be in one is counted there.
        """
        if self.own is None or not self.movable.leave_via():
            return False
        self.request, self.own, self.is_own = self.own, None, True
        return True

    def reservation(
        self, *, request_id: str, n_prompt_tokens: int, max_new_tokens: int
    ) -> Reservation:
        """Return what the ledger is to hold for it."""
        lease, n_answers = self.lease, self.request.sampling.n
        return Reservation(
            request_id=request_id,
            principal=self.principal,
            end_user=self.request.end_user or "",
            attempt=lease.attempt,
            is_fallback=lease.is_fallback or self.is_own,
            experiment_arm=self.enrolment.said if self.enrolment is not None else "",
            door=self.door,
            endpoint=self.request.endpoint,
            route_name=lease.model.name,
            rollout_arm="" if lease.via is not None else lease.destination.arm,
            deployment_id=lease.destination.deployment_id,
            model_version_id=lease.destination.model_version_id,
            engine_name=lease.endpoint.engine_name,
            engine_epoch=lease.endpoint.epoch,
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
        Overloaded: the bounded queues of all engines that it may go to are full.
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
    admitted = await runtime.admit(
        principal=principal,
        model=request.model,
        end_user=request.end_user,
        is_counted=door not in UNHURRIED_DOORS,
    )
    enrolment = enrolment_of(runtime, request, principal=principal, door=door)
    asked = request if enrolment is None else templated(request, enrolment.prompt_template)
    lease = runtime.table.lease(
        request.model,
        principal=principal,
        demand=generation_demand(asked, principal=principal),
        via=None if enrolment is None else enrolment.destinations,
    )
    defaults = lease.model.defaults
    own = with_defaults(request, defaults)
    if enrolment is None:
        asked = own
    else:
        asked = with_defaults(asked, {**defaults, **enrolment.parameters})
    timeout_s = float(settings.GATEWAY_REQUEST_TIMEOUT_S)
    return Arrival(
        principal=principal,
        request=asked,
        enrolment=enrolment,
        own=None if asked == own and lease.via is None else own,
        request_id=new_id(request.id_prefix),
        door=door,
        priority=priority,
        admitted=admitted,
        movable=MovableLease(runtime.table, lease),
        access_generation=access_generation,
        started_s=started_s,
        deadline_s=asyncio.get_running_loop().time() + timeout_s,
    )


async def dispatch(arrival: Arrival) -> GenerationStream:
    """Prepare, reserve and begin, where it can be done; raises as ``start``, with nothing left
    behind."""
    kind = JudgedStream if arrival.judges else GenerationStream
    stream = kind(
        runtime=gateway_runtime(),
        attempts=arrival,
        model=arrival.lease.model.name,
        requests=arrival.admitted.requests,
        n_answers=arrival.request.sampling.n,
        deadline_s=arrival.deadline_s,
        is_whole=arrival.is_whole,
        max_tokens_param=arrival.request.max_tokens_param,
    )
    await stream.open()
    return stream


async def _prepare(arrival: Arrival) -> Attempt:
    runtime = gateway_runtime()
    principal, request = arrival.principal, arrival.request
    request_id = attempt_id(arrival.request_id, arrival.n_rows + 1)
    dispatched = Dispatched(
        principal=principal, request=request, lease=arrival.lease, request_id=request_id
    )
    await runtime.quarantine.check(dispatched)
    client = await runtime.engines.client(arrival.lease.endpoint)
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
                deadline_s=float(settings.GATEWAY_REQUEST_TIMEOUT_S),
            ),
            cache_tags=cache_tags(principal.tenant_id, arrival.person),
            output_format=request.output_format,
            is_streamed=not arrival.is_whole,
        )
    except EngineDead as error:
        runtime.quarantine.over(dispatched, error, is_completed=False)
        raise
    n_prompt_tokens = prepared.n_prompt_tokens
    try:
        max_new_tokens = _within_context(
            request,
            n_prompt_tokens=n_prompt_tokens,
            max_new_tokens=min(prepared.max_new_tokens, request.length_cap or maxsize),
            cap=arrival.admitted.max_context_tokens,
        )
    except InvalidRequest:
        client.discard(request_id)  # an engine keeps a bounded number of prompts that wait
        raise
    arrival.lease.place.resize(
        n_prompt_tokens=n_prompt_tokens,
        n_new_tokens=counted_new_tokens(max_new_tokens, n_answers=request.sampling.n),
    )
    arrival.n_rows += 1
    return Attempt(
        runtime=runtime,
        lease=arrival.lease,
        client=client,
        dispatched=dispatched,
        reservation=arrival.reservation(
            request_id=request_id, n_prompt_tokens=n_prompt_tokens, max_new_tokens=max_new_tokens
        ),
        n_answers=request.sampling.n,
        max_new_tokens=max_new_tokens,
        access_generation=arrival.access_generation,
        started_s=arrival.started_s,
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
