"""The routing table chooses in memory: no database here."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from apps.core.limits import UNLIMITED
from apps.deployments.types import ReplicaEndpoint
from apps.rbac.types import Principal
from apps.routing.exceptions import ModelNotFound, NoReplicaReady
from apps.routing.table import Lease, RoutingTable
from apps.routing.types import Audience, RouteTarget, RoutingSnapshot


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


def caller(*, tenant_id: int = 1, subject_id: int | None = None, **fields: bool) -> Principal:
    return Principal(
        tenant_id=tenant_id,
        tenant_slug="t",
        cache_salt="0" * 64,
        label="t",
        limits=UNLIMITED,
        subject_id=subject_id,
        **fields,
    )


def lease(routes: RoutingTable, name: str = "chat") -> Lease:
    return routes.lease(name, principal=caller())


def test_the_least_loaded_replica_is_chosen() -> None:
    routes = table(endpoint(0), endpoint(1))
    leases = [lease(routes) for _ in range(4)]
    assert [lease.endpoint.replica_index for lease in leases] == [0, 1, 0, 1]
    leases[1].release()
    leases[3].release()
    assert [lease(routes).endpoint.replica_index for _ in range(3)] == [1, 1, 0]


def test_a_lease_is_released_once() -> None:
    routes = table(endpoint(0), endpoint(1))
    first, second = lease(routes), lease(routes)
    second.release()
    second.release()  # were it counted twice, replica 1 would look emptier than it is
    third, fourth = lease(routes), lease(routes)
    assert [lease.endpoint.replica_index for lease in (first, third, fourth)] == [0, 1, 0]


def test_leases_stay_counted_over_a_new_snapshot() -> None:
    routes = table(endpoint(0), endpoint(1))
    lease(routes)
    routes.replace(
        RoutingSnapshot(routes=routes.snapshot.routes, endpoints={1: (endpoint(0), endpoint(1))})
    )
    assert lease(routes).endpoint.replica_index == 1


def test_an_unknown_name() -> None:
    with pytest.raises(ModelNotFound) as missing:
        lease(table(endpoint(0)), "x" * 500)
    assert (missing.value.status, missing.value.code) == (404, "model_not_found")
    assert missing.value.param == "model"
    assert len(missing.value.message) < 200


def test_no_replica() -> None:
    with pytest.raises(NoReplicaReady) as missing:
        lease(table())
    assert (missing.value.status, missing.value.code) == (503, "engine_unavailable")
    assert missing.value.retry_after_s == 1.0


def test_a_restricted_route_is_there_for_its_audience_alone() -> None:
    routes = table(endpoint(0))
    (target,) = routes.snapshot.routes.values()
    audience = Audience(tenant_ids=frozenset({2}), user_ids=frozenset({7}))
    routes.replace(
        RoutingSnapshot(
            routes={"chat": replace(target, audience=audience)},
            endpoints=routes.snapshot.endpoints,
        )
    )
    for stranger in (caller(), caller(subject_id=2), caller(tenant_id=7)):
        with pytest.raises(ModelNotFound):
            routes.lease("chat", principal=stranger)
        assert routes.targets(principal=stranger) == []
    for guest in (caller(tenant_id=2), caller(subject_id=7), caller(uses_every_route=True)):
        routes.lease("chat", principal=guest)
        assert [each.name for each in routes.targets(principal=guest)] == ["chat"]
