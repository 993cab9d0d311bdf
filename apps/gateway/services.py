"""What other rooms may ask of the gateway's process-local state."""

from apps.deployments.types import ReplicaEndpoint
from apps.engines.types import EngineHealth
from apps.gateway.runtime import gateway_runtime


async def engine_ping(endpoint: ReplicaEndpoint, *, timeout_s: float) -> EngineHealth:
    """Make a round trip through an engine's step loop, over the connection that requests use.

    Raises:
        EngineDead: it did not answer in time, or nobody is there.
    """
    client = await gateway_runtime().engines.client(endpoint)
    return await client.ping(timeout_s)


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
