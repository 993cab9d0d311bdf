"""The routing table chooses in memory: no database here."""

from datetime import UTC, datetime

import pytest

from apps.deployments.types import ReplicaEndpoint
from apps.routing.exceptions import ModelNotFound, NoReplicaReady
from apps.routing.table import RoutingTable
from apps.routing.types import RouteTarget, RoutingSnapshot


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


def table(*endpoints: ReplicaEndpoint) -> RoutingTable:
    target = RouteTarget(
        name="chat",
        deployment_id=1,
        deployment_name="d",
        model_version_id=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    found = RoutingTable()
    found.replace(RoutingSnapshot(routes={"chat": target}, endpoints={1: endpoints}))
    return found


def test_the_least_loaded_replica_is_chosen() -> None:
    routes = table(endpoint(0), endpoint(1))
    leases = [routes.lease("chat") for _ in range(4)]
    assert [lease.endpoint.replica_index for lease in leases] == [0, 1, 0, 1]
    leases[1].release()
    leases[3].release()
    assert [routes.lease("chat").endpoint.replica_index for _ in range(3)] == [1, 1, 0]


def test_a_lease_is_released_once() -> None:
    routes = table(endpoint(0), endpoint(1))
    first, second = routes.lease("chat"), routes.lease("chat")
    second.release()
    second.release()  # were it counted twice, replica 1 would look emptier than it is
    third, fourth = routes.lease("chat"), routes.lease("chat")
    assert [lease.endpoint.replica_index for lease in (first, third, fourth)] == [0, 1, 0]


def test_leases_stay_counted_over_a_new_snapshot() -> None:
    routes = table(endpoint(0), endpoint(1))
    routes.lease("chat")
    routes.replace(
        RoutingSnapshot(routes=routes.snapshot.routes, endpoints={1: (endpoint(0), endpoint(1))})
    )
    assert routes.lease("chat").endpoint.replica_index == 1


def test_an_unknown_name() -> None:
    with pytest.raises(ModelNotFound) as missing:
        table(endpoint(0)).lease("x" * 500)
    assert (missing.value.status, missing.value.code) == (404, "model_not_found")
    assert missing.value.param == "model"
    assert len(missing.value.message) < 200


def test_no_replica() -> None:
    with pytest.raises(NoReplicaReady) as missing:
        table().lease("chat")
    assert (missing.value.status, missing.value.code) == (503, "engine_unavailable")
    assert missing.value.retry_after_s == 1.0
