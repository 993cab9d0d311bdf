"""What other rooms may ask of the gateway: a whole answer, and its process-local state."""

from typing import Final

import msgspec
from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from rest_framework.response import Response

from apps.core.exceptions import AppError, InvalidRequest, NotFound
from apps.core.ids import new_id
from apps.deployments.types import ReplicaEndpoint
from apps.engines.client import EngineClient
from apps.gateway.decoding import decode
from apps.gateway.rest.base import AnsweringView
from apps.gateway.rest.chat import ChatCompletionView
from apps.gateway.rest.completions import CompletionView
from apps.gateway.rest.embeddings import EmbeddingView
from apps.gateway.rest.generation import GenerationView
from apps.gateway.rest.responses import ResponsesView
from apps.gateway.runtime import gateway_runtime
from apps.gateway.types import Answer, ReuseWish
from apps.rbac.types import Principal

_VIEWS: Final[dict[str, type[AnsweringView]]] = {
    "/v1/chat/completions": ChatCompletionView,
    "/v1/completions": CompletionView,
    "/v1/embeddings": EmbeddingView,
    "/v1/responses": ResponsesView,
}


async def answer(
    *,
    principal: Principal,
    endpoint: str,
    body: bytes,
    door: str,
    priority: int,
    wish: ReuseWish | None = None,
) -> Answer:
    """Answer one request whole, for a caller without a connection. An error is an answer too.

    wish: what the caller says of kept answers. The answer's ``request_id`` begins with ``req``
    where no engine was asked.
    """
    job: AnsweringView | None = None
    try:
        if (view := _VIEWS.get(endpoint)) is None:
            raise NotFound(f"{endpoint} is not served here.", param="url")
        asked = decode(view.decoder, body)
        if getattr(asked, "stream", None):
            raise InvalidRequest(
                "Streaming is not possible here.", code="unsupported_value", param="stream"
            )
        job = view.for_job(principal=principal, door=door, priority=priority)
        if isinstance(job, GenerationView):
            job.wish = wish
        response = await job.answer(asked)
        return Answer(
            status=200, body=await _content(response), request_id=response["X-Request-Id"]
        )
    except AppError as error:
        found = msgspec.json.encode(error.body())
        request_id = (job.request_id if job is not None else None) or new_id("req")
        return Answer(
            status=error.status,
            body=found,
            request_id=request_id,
            retry_after_s=error.retry_after_s,
        )


async def _content(response: HttpResponseBase) -> bytes:
    if isinstance(response, Response):
        return msgspec.json.encode(response.data)
    if isinstance(response, StreamingHttpResponse):
        return b"".join([part async for part in response])
    return bytes(response.content)  # type: ignore[attr-defined]


async def aclose() -> None:
    """End what this event loop holds of the gateway: a worker's loop ends with its task."""
    await gateway_runtime().aclose()


async def engine_ping(endpoint: ReplicaEndpoint, *, timeout_s: float) -> None:
    """Make a round trip through an engine's step loop, over the connection that requests use. A
    server that is not ours is not asked each time: the agent does, and it was ready just now.

    Raises:
        EngineDead: it did not answer in time, or nobody is there.
    """
    client = await gateway_runtime().engines.client(endpoint)
    if isinstance(client, EngineClient):
        await client.ping(timeout_s)


async def routed_replicas(deployment_id: int) -> tuple[ReplicaEndpoint, ...]:
    """Return the replicas that this process would send a request to at this moment.

    The routing table, not the database: a replica that is ready there may be news that has not
    come here yet.

    Raises:
        Unavailable: the routes were never read and cannot be.
    """
    runtime = gateway_runtime()
    await runtime.ready()
    return runtime.table.snapshot.endpoints.get(deployment_id, ())


def is_draining() -> bool:
    """True while this process is stopping and admits nothing."""
    return gateway_runtime().is_draining
