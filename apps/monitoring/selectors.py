"""Whether the platform can serve: a round trip to the database and one through every deployment."""

import asyncio
from dataclasses import dataclass, field

from django.db import DatabaseError, InterfaceError

from apps.core.exceptions import Unavailable
from apps.core.hop import database_hop
from apps.deployments.selectors import deployments_all
from apps.deployments.types import ReplicaEndpoint
from apps.engines.exceptions import EngineClientError
from apps.gateway.services import engine_ping, is_draining, routed_replicas

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
        running = await database_hop(_running)
        states = await asyncio.gather(*(_state(deployment_id) for deployment_id in running))
    except (DatabaseError, InterfaceError, Unavailable):
        return Readiness(process=process, database="does not answer")
    return Readiness(
        process=process, database=OK, deployments=dict(zip(running.values(), states, strict=True))
    )


def _running() -> dict[int, str]:
    return {each.pk: each.name for each in deployments_all() if each.desired_state == "running"}


async def _state(deployment_id: int) -> str:
    """``ok`` as soon as one replica answers."""
    endpoints = await routed_replicas(deployment_id)
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
