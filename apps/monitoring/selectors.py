"""Whether the platform can serve: a round trip to the database and one through every deployment."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from django.db import DatabaseError, InterfaceError

from apps.core.hop import database_hop
from apps.deployments.selectors import deployments_all, replica_endpoints
from apps.deployments.types import ReplicaEndpoint
from apps.engines.exceptions import EngineClientError
from apps.gateway.services import engine_ping, is_draining

PING_TIMEOUT_S = 2.0
OK = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """``ok`` or a reason, for the process, the database and every deployment that should run."""

    process: str
    database: str
    deployments: dict[str, str] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        return all(each == OK for each in (self.process, self.database, *self.deployments.values()))


async def readiness() -> Readiness:
    """Ask everything that a request needs; takes at most about ``PING_TIMEOUT_S``."""
    process = "shutting down" if is_draining() else OK
    try:
        running, endpoints = await database_hop(_running)
    except (DatabaseError, InterfaceError):
        return Readiness(process=process, database="does not answer")
    states = await asyncio.gather(*(_state(endpoints[name]) for name in running))
    return Readiness(
        process=process, database=OK, deployments=dict(zip(running, states, strict=True))
    )


def _running() -> tuple[list[str], dict[str, list[ReplicaEndpoint]]]:
    running = [each.name for each in deployments_all() if each.desired_state == "running"]
    endpoints: defaultdict[str, list[ReplicaEndpoint]] = defaultdict(list)
    for endpoint in replica_endpoints():
        endpoints[endpoint.deployment_name].append(endpoint)
    return running, endpoints


async def _state(endpoints: list[ReplicaEndpoint]) -> str:
    """``ok`` as soon as one replica answers."""
    if not endpoints:
        return "no engine is ready"
    pings = [asyncio.ensure_future(_answers(endpoint)) for endpoint in endpoints]
    try:
        for ping in asyncio.as_completed(pings):
            if await ping:
                return OK
    finally:
        for each in pings:
            each.cancel()
    return "no engine answers"


async def _answers(endpoint: ReplicaEndpoint) -> bool:
    try:
        async with asyncio.timeout(PING_TIMEOUT_S):
            await engine_ping(endpoint, timeout_s=PING_TIMEOUT_S)
    except (EngineClientError, TimeoutError):
        return False
    return True
