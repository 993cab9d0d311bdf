"""What runs, as server processes read it."""

from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries

from apps.audit.types import Actor
from apps.deployments.models import Deployment
from apps.experiments.models import Experiment
from apps.experiments.selectors import ExperimentSnapshot
from apps.experiments.selectors import snapshot as experiments_snapshot
from apps.experiments.services import experiment_start
from apps.experiments.types import Eligibility, MetricSpec
from apps.judging.services import judge_update
from apps.judging.types import Sampling
from apps.routing.models import Route
from apps.routing.selectors import snapshot as routing_snapshot
from tests.factories import (
    ExperimentFactory,
    JudgeFactory,
    LayerFactory,
    ModelVersionFactory,
    RouteFactory,
    RouteTargetFactory,
    VariantFactory,
)
from tests.integration.experiments.setting import LATENCY, drafted, ready, route_ready, two_arms

pytestmark = pytest.mark.django_db


def snapshot() -> ExperimentSnapshot:
    return experiments_snapshot(routing_snapshot())


def started(actor: Actor, route: Route, **fields: Any) -> Experiment:
    draft = drafted(actor, route, **fields)
    return experiment_start(experiment=draft, seen=draft.version, actor=actor)


def test_all_of_an_experiment(actor: Actor) -> None:
    route, new = route_ready(), ready("new")
    experiment = started(
        actor,
        route,
        share_percent=40.0,
        eligibility={"doors": ["rest"]},
        variants=two_arms(new, weight=30, parameters={"top_p": 0.5}, prompt_template="Be short."),
    )
    (plan,) = snapshot().by_route["chat"]
    assert (plan.id, plan.layer_id) == (experiment.pk, experiment.layer_id)
    assert (plan.salt, plan.layer_salt) == (experiment.salt, experiment.layer.salt)
    assert (plan.slots, plan.subject) == (((0, 4000),), "end_user")
    assert plan.eligibility == Eligibility(doors=frozenset({"rest"}))
    assert plan.needs_turns
    control, b = plan.variants.values()
    assert dict(plan.weights) == {control.id: 50, b.id: 30}
    assert (control.destinations, dict(control.parameters)) == (None, {})
    assert b.destinations is not None
    (leads,) = b.destinations
    assert (leads.deployment_id, leads.arm, leads.weight > 0) == (new.pk, "", True)
    assert (dict(b.parameters), b.prompt_template) == ({"top_p": 0.5}, "Be short.")


def test_only_what_runs_in_three_queries(
    actor: Actor, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    route = route_ready()
    routing = routing_snapshot()
    drafted(actor, route, name="draft")
    ExperimentFactory(route=route, stopped=True)
    with django_assert_num_queries(1):
        assert experiments_snapshot(routing).by_route == {}
    first = started(actor, route, name="first", share_percent=10.0)
    second = started(actor, route, name="second", share_percent=10.0)
    other = started(actor, route_ready("other"), name="third", share_percent=10.0)
    with django_assert_num_queries(3):
        found = experiments_snapshot(routing).by_route
    ids = {name: [plan.id for plan in plans] for name, plans in found.items()}
    assert ids == {"chat": [first.pk, second.pk], "other": [other.pk]}


def test_who_scores_the_answers_of_each_in_one_query_more(
    actor: Actor, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    route, strict = route_ready(), route_ready("strict")
    kind = JudgeFactory(name="kind", route=strict, sample_percent=20.0)
    short = JudgeFactory(name="short", route=strict)
    for number, names in enumerate((("kind", "short"), ("kind",), ())):
        metrics = [LATENCY, *(MetricSpec(metric=f"judge:{name}") for name in names)]
        started(actor, route, name=f"n{number}", metrics=metrics, share_percent=10.0)
    routing = routing_snapshot()

    def judges() -> list[list[Sampling]]:
        with django_assert_num_queries(4):
            plans = experiments_snapshot(routing).by_route["chat"]
        return [list(plan.judges) for plan in plans]

    by_kind = Sampling(judge_id=kind.pk, name="kind", sample_percent=20.0)
    by_short = Sampling(judge_id=short.pk, name="short", sample_percent=100.0)
    assert judges() == [[by_kind, by_short], [by_kind], []]
    judge_update(judge=kind, seen=1, actor=actor, is_on=False)
    assert judges() == [[by_short], [], []]


def test_another_route_leads_where_it_leads_now(actor: Actor) -> None:
    other = RouteFactory(name="other", deployment=ready("one"))
    RouteTargetFactory(route=other, deployment=ready("two"), weight=300)
    started(actor, route_ready(), variants=two_arms(other_route=other))

    def leads() -> list[tuple[str, int]] | None:
        (plan,) = snapshot().by_route["chat"]
        _, b = plan.variants.values()
        assert b.destinations is not None
        return [(each.deployment_name, each.weight) for each in b.destinations]

    assert leads() == [("two", 300), ("one", 100)]
    Route.objects.filter(name="other").update(is_restricted=True)
    assert leads() == []
    Route.objects.filter(name="other").update(is_restricted=False, is_active=False)
    assert leads() == []


def test_a_deployment_that_does_something_else_by_now(actor: Actor) -> None:
    new = ready("new")
    started(actor, route_ready(), variants=two_arms(new))
    version = ModelVersionFactory(architecture="BertModel")
    Deployment.objects.filter(pk=new.pk).update(model_version=version)
    (plan,) = snapshot().by_route["chat"]
    assert [each.destinations for each in plan.variants.values()] == [None, ()]


@pytest.mark.parametrize(
    "wrong", [{"eligibility": {"no": []}}, {"slots": [[1]]}, {"slots": 5}, {"eligibility": 7}]
)
def test_one_that_cannot_be_read_is_left_out(actor: Actor, wrong: dict[str, Any]) -> None:
    route = route_ready()
    broken = started(actor, route, name="broken", layer=LayerFactory(), share_percent=10.0)
    whole = started(actor, route, name="whole", layer=broken.layer, share_percent=10.0)
    Experiment.objects.filter(pk=broken.pk).update(**wrong)
    assert [plan.id for plan in snapshot().by_route["chat"]] == [whole.pk]


def test_one_without_variants_is_left_out() -> None:
    empty = ExperimentFactory(running=True)
    full = VariantFactory(experiment=ExperimentFactory(running=True)).experiment
    found = snapshot().by_route
    assert list(found) == [full.route.name]
    assert empty.route.name not in found
