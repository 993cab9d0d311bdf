"""The routing table chooses in memory: no database here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.core.limits import UNLIMITED
from apps.deployments.types import ReplicaEndpoint
from apps.rbac.types import Principal
from apps.routing.exceptions import ModelNotFound, NoReplicaReady
from apps.routing.table import Lease, RoutingTable, order
from apps.routing.types import Audience, Destination, PublicModel, RoutingSnapshot


def endpoint(index: int, *, deployment: int = 1, epoch: int = 1) -> ReplicaEndpoint:
    return ReplicaEndpoint(
        deployment_id=deployment,
        deployment_name=f"d{deployment}",
        model_version_id=1,
        replica_index=index,
        engine_name=f"d{deployment}-{index}",
        epoch=epoch,
        socket_path=f"/run/d{deployment}-{index}.sock",
    )


def destination(deployment: int, *, weight: int = 0, context_length: int = 2048) -> Destination:
    return Destination(
        deployment_id=deployment,
        deployment_name=f"d{deployment}",
        model_version_id=deployment,
        context_length=context_length,
        weight=weight,
    )


def model_of(*destinations: Destination, fallbacks: Sequence[Destination] = ()) -> PublicModel:
    return PublicModel(
        name="chat",
        aliases=("chat-latest",),
        destinations=destinations,
        fallbacks=tuple(fallbacks),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def table_of(model: PublicModel, *endpoints: ReplicaEndpoint, seed: int = 0) -> RoutingTable:
    by_deployment: dict[int, tuple[ReplicaEndpoint, ...]] = {}
    for each in endpoints:
        by_deployment[each.deployment_id] = (*by_deployment.get(each.deployment_id, ()), each)
    found = RoutingTable(random=Random(seed))
    found.replace(
        RoutingSnapshot(
            routes={model.name: model},
            aliases=dict.fromkeys(model.aliases, model.name),
            endpoints=by_deployment,
        )
    )
    return found


def table(*endpoints: ReplicaEndpoint) -> RoutingTable:
    return table_of(model_of(destination(1, weight=100)), *endpoints)


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
    (model,) = routes.snapshot.routes.values()
    audience = Audience(tenant_ids=frozenset({2}), user_ids=frozenset({7}))
    routes.replace(
        RoutingSnapshot(
            routes={"chat": replace(model, audience=audience)},
            endpoints=routes.snapshot.endpoints,
        )
    )
    for stranger in (caller(), caller(subject_id=2), caller(tenant_id=7)):
        with pytest.raises(ModelNotFound):
            routes.lease("chat", principal=stranger)
        assert routes.models(principal=stranger) == []
    for guest in (caller(tenant_id=2), caller(subject_id=7), caller(uses_every_route=True)):
        routes.lease("chat", principal=guest)
        assert [each.name for each in routes.models(principal=guest)] == ["chat"]


# -- several deployments ---------------------------------------------------------------------------


def ids(found: Sequence[Destination]) -> list[int]:
    return [each.deployment_id for each in found]


@given(
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=6),
    n_fallbacks=st.integers(0, 3),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_the_order_has_everything_once_and_fallbacks_last(
    weights: list[int], n_fallbacks: int, seed: int, data: st.DataObject
) -> None:
    drawn = [destination(number, weight=weight) for number, weight in enumerate(weights, 1)]
    chain = [destination(100 + number) for number in range(n_fallbacks)]
    model = model_of(*drawn, fallbacks=chain)
    first = data.draw(st.sampled_from([None, *model.everywhere]))
    found = list(order(model, first=first, random=Random(seed)))
    assert sorted(ids(found)) == sorted(ids(model.everywhere))
    if first is not None:
        assert found.pop(0) == first
    assert [each for each in found if each in chain] == [each for each in chain if each != first]
    assert all(each in chain for each in found[len([d for d in drawn if d != first]) :])


def test_shares_are_the_weights() -> None:
    model = model_of(destination(1, weight=70), destination(2, weight=30))
    routes = table_of(model, endpoint(0), endpoint(0, deployment=2), seed=4)
    drawn = Counter(lease(routes).destination.deployment_id for _ in range(10_000))
    # 99 % of draws of 10,000 at 0.7 are within 2.576 standard deviations of 45.8
    assert abs(drawn[1] - 7000) <= 118


def test_the_share_of_what_is_not_ready_goes_to_the_others_by_their_weights() -> None:
    model = model_of(*(destination(n, weight=w) for n, w in ((1, 50), (2, 30), (3, 20))))
    routes = table_of(model, endpoint(0, deployment=2), endpoint(0, deployment=3), seed=5)
    drawn = Counter(lease(routes).destination.deployment_id for _ in range(10_000))
    assert set(drawn) == {2, 3}
    assert abs(drawn[2] - 6000) <= 126


def test_fallbacks_take_over_in_their_order_where_nothing_with_a_weight_is_ready() -> None:
    model = model_of(destination(1, weight=1), fallbacks=[destination(3), destination(2)])
    two, three = endpoint(0, deployment=2), endpoint(0, deployment=3)
    found = lease(table_of(model, two, three))
    assert (found.destination.deployment_id, found.is_fallback) == (3, True)
    assert lease(table_of(model, two)).destination.deployment_id == 2
    found = lease(table_of(model, endpoint(0), two, three))
    assert (found.destination.deployment_id, found.is_fallback) == (1, False)
    with pytest.raises(NoReplicaReady):
        lease(table_of(model))


def test_elsewhere_is_the_same_deployment_then_the_others_then_the_fallbacks() -> None:
    model = model_of(
        destination(1, weight=99), destination(2, weight=1), fallbacks=[destination(3)]
    )
    routes = table_of(
        model, endpoint(0), endpoint(1), endpoint(0, deployment=2), endpoint(0, deployment=3)
    )
    found: Lease | None = lease(routes)
    names = []
    while found is not None:
        names.append((found.endpoint.engine_name, found.attempt, found.is_fallback))
        found.release()
        found = routes.lease_elsewhere(found)
    assert names == [
        ("d1-0", 1, False),
        ("d1-1", 2, False),
        ("d2-0", 3, False),
        ("d3-0", 4, True),
    ]


def test_elsewhere_counts_what_is_held() -> None:
    routes = table(endpoint(0), endpoint(1))
    held = lease(routes)
    moved = routes.lease_elsewhere(held)
    assert moved is not None
    held.release()
    moved.release()
    assert [lease(routes).endpoint.replica_index for _ in range(2)] == [0, 1]


def test_a_further_name_means_the_same_and_an_unknown_one_is_told_as_it_was_asked() -> None:
    routes = table(endpoint(0))
    assert lease(routes, "chat-latest").model.name == "chat"
    with pytest.raises(ModelNotFound, match="chat-late'"):
        lease(routes, "chat-late")


def test_the_context_is_the_least_of_all() -> None:
    model = model_of(
        destination(1, weight=1, context_length=4096),
        destination(2, weight=1, context_length=2048),
        fallbacks=[destination(3, context_length=1024)],
    )
    assert model.context_length == 1024


# -- where something else than the route has a request go ------------------------------------------

VIA = (destination(7, weight=70), destination(8, weight=30))


def via_table(*deployments: int) -> RoutingTable:
    """Return a route to 1 with the fallback 3, and one replica of each of these."""
    model = model_of(destination(1, weight=100), fallbacks=[destination(3)])
    return table_of(model, *(endpoint(0, deployment=each) for each in deployments))


def test_it_goes_there_by_weight_and_is_no_fallback() -> None:
    chooser = via_table(1, 3, 7, 8)
    leases = [chooser.lease("chat", principal=caller(), via=VIA) for _ in range(300)]
    counted = Counter(lease.destination.deployment_id for lease in leases)
    assert set(counted) == {7, 8}
    assert abs(counted[7] - 210) < 40
    assert not any(lease.is_fallback for lease in leases)
    assert all(lease.is_via for lease in leases)


@pytest.mark.parametrize(("ready", "goes"), [((1, 3, 8), 8), ((1, 3), 1), ((3,), 3)])
def test_where_nothing_there_is_ready_the_route_leads(ready: tuple[int, ...], goes: int) -> None:
    lease = via_table(*ready).lease("chat", principal=caller(), via=VIA)
    assert lease.destination.deployment_id == goes
    assert lease.is_fallback == (goes != 8)


def test_nowhere_is_where_the_route_leads_too() -> None:
    lease = via_table(1, 3).lease("chat", principal=caller(), via=())
    assert (lease.destination.deployment_id, lease.is_fallback) == (1, True)
    with pytest.raises(NoReplicaReady):
        via_table().lease("chat", principal=caller(), via=VIA)


def test_what_fails_there_goes_where_the_route_leads() -> None:
    chooser = via_table(1, 3, 7, 8)
    lease = chooser.lease("chat", principal=caller(), via=VIA)
    second = chooser.lease_elsewhere(lease)
    assert second is not None
    assert (second.destination.deployment_id, second.attempt) == (1, 2)
    assert (second.is_via, second.is_fallback) == (False, True)
    third = chooser.lease_elsewhere(second)
    assert third is not None
    assert (third.destination.deployment_id, third.is_fallback) == (3, True)
    assert chooser.lease_elsewhere(third) is None


def test_a_request_can_be_given_back_to_its_route() -> None:
    chooser = via_table(1, 3, 7)
    own = chooser.lease_own(chooser.lease("chat", principal=caller(), via=VIA))
    assert own is not None
    assert (own.destination.deployment_id, own.attempt, own.is_fallback) == (1, 1, True)
    plain = chooser.lease("chat", principal=caller())
    same = chooser.lease_own(plain)
    assert same is not None
    assert (same.endpoint, same.attempt, same.is_fallback) == (plain.endpoint, 1, False)
