"""Replicas to choose from, and a clock that stands still until it is told."""

from dataclasses import dataclass

from apps.deployments.types import ReplicaEndpoint


@dataclass(slots=True)
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def endpoint(index: int, *, epoch: int = 1) -> ReplicaEndpoint:
    return ReplicaEndpoint(
        deployment_id=1,
        deployment_name="d",
        model_version_id=1,
        replica_index=index,
        engine_name=f"d-{index}",
        epoch=epoch,
        socket_path=f"/run/d-{index}.sock",
    )
