"""A route to a real embedding engine, and the rows of the ledger that its requests leave."""

from apps.core.hop import database_hop
from apps.metering.models import UsageRecord
from tests.factories.deployments import DeploymentFactory, EngineProcessFactory, ReplicaFactory
from tests.factories.routing import RouteFactory
from tests.processes import EngineRun
from tests.rows import all_of

MODEL = "lab/minilm"
# Takes seconds: 600 texts of nearly the longest that the model reads.
MANY = ["word " * 250] * 600


def route_to(engine: EngineRun, *, name: str = MODEL) -> None:
    deployment = DeploymentFactory(name="minilm")
    process = EngineProcessFactory(
        ready=True, name="minilm-0", epoch=engine.epoch, socket_path=str(engine.socket_path)
    )
    ReplicaFactory(deployment=deployment, index=0, engine_process=process)
    RouteFactory(name=name, deployment=deployment)


async def rows() -> list[UsageRecord]:
    return await database_hop(lambda: list(all_of(UsageRecord).order_by("id")))


async def only_row() -> UsageRecord:
    (row,) = await rows()
    return row
