"""Experiments: every change with its audit event, its version and, where it runs, its stamp."""

from typing import Any

import pytest
from django.core.exceptions import ValidationError

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.selectors import change_stamps
from apps.experiments.exceptions import ExperimentConflict
from apps.experiments.models import Experiment, Layer, Variant
from apps.experiments.selectors import slots_of, variants_of
from apps.experiments.services import (
    experiment_create,
    experiment_delete,
    experiment_start,
    experiment_stop,
    experiment_update,
    variant_weights_set,
)
from apps.experiments.types import MetricSpec, VariantSpec
from apps.routing.models import Route
from tests.factories import (
    AssignmentFactory,
    DeploymentFactory,
    ModelVersionFactory,
    RouteFactory,
    TenantFactory,
)
from tests.integration.experiments.setting import (
    LATENCY,
    drafted,
    ready,
    route_ready,
    started,
    stored,
    two_arms,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def route(db: None) -> Route:
    return route_ready()


@pytest.fixture
def running(actor: Actor, route: Route) -> Experiment:
    return started(actor, drafted(actor, route))


def said() -> list[str]:
    """Return what the audit trail has, the oldest first."""
    return [event.action for event in all_of(AuditEvent).order_by("id")]


# -- drafts ------------------------------------------------------------------------------------


def test_create(actor: Actor, route: Route) -> None:
    experiment = drafted(actor, route, hypothesis="Cooler is quicker.", subject="token")
    assert (experiment.state, experiment.version, experiment.layer.name) == ("draft", 1, "default")
    assert len(experiment.salt) == 32 != experiment.layer.salt
    assert [(each.name, each.is_control, each.weight) for each in variants_of(experiment)] == [
        ("control", True, 50),
        ("b", False, 50),
    ]
    assert said() == ["layer.created", "experiment.created"]
    assert all_of(AuditEvent).latest("id").changes == {
        "name": "cooler",
        "route": "chat",
        "layer": "default",
        "hypothesis": "Cooler is quicker.",
        "subject": "token",
        "variants": ["control=50 control", "b=50 temperature=0.2"],
        "metrics": ["primary latency, lower is better"],
    }
    assert "experiments" not in change_stamps()


def test_two_drafts_share_the_default_layer_and_no_salt(actor: Actor, route: Route) -> None:
    one, two = drafted(actor, route, name="one"), drafted(actor, route, name="two")
    assert one.layer == two.layer
    assert one.salt != two.salt
    assert Layer.objects.count() == 1


@pytest.mark.parametrize(
    ("field", "fields", "words"),
    [
        ("name", {"name": "no name"}, "letters"),
        ("share_percent", {"share_percent": 101.0}, "less than or equal to 100"),
        ("subject", {"subject": "planet"}, "not a valid choice"),
        ("eligibility", {"eligibility": {"countries": ["fr"]}}, "'countries' is none of"),
        ("eligibility", {"eligibility": {"doors": ["cat"]}}, "'cat' is none of the doors"),
        ("eligibility", {"eligibility": {"tenants": "acme"}}, "tenants must be a list of texts"),
        ("eligibility", {"eligibility": {"api_tokens": [True]}}, "a list of whole numbers"),
        ("eligibility", {"eligibility": {"tenants": ["nobody"]}}, "no tenant 'nobody'"),
        ("eligibility", {"eligibility": {"end_user_prefixes": [""]}}, "has an empty entry"),
        ("variants", {"variants": two_arms(parameters={"temperature": 9})}, "b: temperature must"),
        ("variants", {"variants": two_arms(parameters={"seed": 1})}, "b: 'seed' is none of"),
        ("variants", {"variants": two_arms(weight=0)}, "b: Ensure this value is greater"),
        ("variants", {"variants": two_arms(is_control=True)}, "Only one can be the control"),
        ("variants", {"variants": [VariantSpec(name="b")] * 2}, "b is there twice"),
        (
            "variants",
            {"variants": [VariantSpec(name=f"v{n}") for n in range(11)]},
            "There may be 10 at most",
        ),
        ("metrics", {"metrics": [LATENCY] * 2}, "latency as primary is there twice"),
        (
            "metrics",
            {"metrics": [LATENCY, MetricSpec(metric="cost", role="primary")]},
            "Only one can be primary",
        ),
    ],
)
def test_what_no_draft_may_be_changes_nothing(
    actor: Actor, route: Route, field: str, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        drafted(actor, route, **fields)
    assert list(refused.value.message_dict) == [field]
    assert words in refused.value.message_dict[field][0]
    assert not Experiment.objects.exists()
    assert said() == []


def test_update_a_draft(actor: Actor, route: Route) -> None:
    experiment = drafted(actor, route)
    b = Variant.objects.get(name="b")
    tenant = TenantFactory(slug="acme")
    after = experiment_update(
        experiment=experiment,
        seen=1,
        actor=actor,
        share_percent=20.0,
        eligibility={"tenants": [tenant.slug]},
        variants=[VariantSpec(name="b", is_control=True), VariantSpec(name="c", weight=10)],
        metrics=[LATENCY, MetricSpec(metric="error_rate", role="guardrail", tolerance=0.5)],
    )
    assert (after.version, after.share_percent) == (2, 20.0)
    assert [(each.name, each.is_control) for each in variants_of(after)] == [
        ("b", True),
        ("c", False),
    ]
    assert Variant.objects.get(name="b").pk == b.pk
    event = all_of(AuditEvent).latest("id")
    assert event.action == "experiment.updated"
    assert event.changes["share_percent"] == [100.0, 20.0]
    assert event.changes["metrics"][1][1] == (
        "guardrail error_rate, lower is better, 0.5 worse at most"
    )


def test_update_without_a_change_is_none(actor: Actor, route: Route) -> None:
    experiment = drafted(actor, route)
    before = said()
    after = experiment_update(
        experiment=experiment, seen=1, actor=actor, variants=variants_of(experiment), alpha=0.05
    )
    assert after.version == 1
    assert said() == before


def test_a_stale_version_changes_nothing(actor: Actor, route: Route) -> None:
    experiment = drafted(actor, route)
    experiment_update(experiment=experiment, seen=1, actor=actor, hypothesis="Mine.")
    before, events = stored(experiment), said()
    for change in (
        lambda: experiment_update(experiment=experiment, seen=1, actor=actor, hypothesis="No."),
        lambda: variant_weights_set(experiment=experiment, seen=1, actor=actor, weights={"b": 9}),
        lambda: experiment_start(experiment=experiment, seen=1, actor=actor),
        lambda: experiment_stop(experiment=experiment, seen=1, actor=actor, because="No."),
        lambda: experiment_delete(experiment=experiment, seen=1, actor=actor),
    ):
        with pytest.raises(ExperimentConflict) as refused:
            change()
        assert refused.value.status == 409
        assert "changed by someone else" in refused.value.message
    assert stored(experiment) == before
    assert said() == events


def test_delete_what_does_not_run(actor: Actor, route: Route, running: Experiment) -> None:
    draft = drafted(actor, route, name="other")
    experiment_delete(experiment=draft, seen=draft.version, actor=actor)
    with pytest.raises(ExperimentConflict, match="stop it first"):
        experiment_delete(experiment=running, seen=running.version, actor=actor)
    assert Experiment.objects.get() == running
    AssignmentFactory(variant=running.variants.first())
    over = experiment_stop(
        experiment=running, seen=running.version, actor=actor, because="It is enough."
    )
    experiment_delete(experiment=over, seen=over.version, actor=actor)
    assert not Experiment.objects.exists()
    assert said()[-1] == "experiment.deleted"


# -- the start ---------------------------------------------------------------------------------


def test_start(actor: Actor, route: Route) -> None:
    experiment = started(actor, drafted(actor, route, share_percent=25.0))
    assert (experiment.state, experiment.version) == ("running", 2)
    assert slots_of(experiment) == ((0, 2500),)
    assert experiment.started_at == experiment.weights_set_at
    assert said()[-1] == "experiment.started"
    assert change_stamps()["experiments"] == 1
    with pytest.raises(ExperimentConflict, match="is running already"):
        started(actor, experiment)


def refused_start(actor: Actor, route: Route, **fields: Any) -> dict[str, list[str]]:
    """Return why a draft with these fields does not start; nothing has changed then."""
    experiment = drafted(actor, route, **fields)
    before, events = stored(experiment), said()
    with pytest.raises(ValidationError) as refused:
        started(actor, experiment)
    assert stored(experiment) == before
    assert said() == events
    assert "experiments" not in change_stamps()
    return refused.value.message_dict


def test_all_that_is_missing_is_said_at_once(actor: Actor, route: Route) -> None:
    Route.objects.update(is_active=False)
    found = refused_start(actor, route, variants=[], metrics=[])
    assert found == {
        "route": ["chat is switched off."],
        "variants": ["Give two at least: the control, and what is compared with it."],
        "metrics": ["Give one that is primary: it is what the experiment is decided by."],
    }


def test_one_has_to_be_the_control(actor: Actor, route: Route) -> None:
    arms = [VariantSpec(name="a"), VariantSpec(name="b")]
    assert refused_start(actor, route, variants=arms) == {"variants": ["Say which is the control."]}


def test_a_version_has_to_be_ready_and_of_the_right_kind(actor: Actor, route: Route) -> None:
    away = DeploymentFactory(name="away")
    found = refused_start(actor, route, name="one", variants=two_arms(away))
    assert found == {"variants": ["b: no replica of away is ready."]}
    embeds = ready("embeds", model_version=ModelVersionFactory(architecture="BertModel"))
    found = refused_start(actor, route, name="two", variants=two_arms(embeds))
    assert found == {"variants": ["b: embeds makes embeddings."]}


def test_another_route_has_to_lead_somewhere_for_everyone(actor: Actor, route: Route) -> None:
    def other_way(name: str, other: Route) -> list[str]:
        found = refused_start(actor, route, name=name, variants=two_arms(other_route=other))
        assert list(found) == ["variants"]
        return found["variants"]

    assert "is the experiment's own route" in other_way("one", route)[0]
    assert "nothing that empty leads to is ready" in other_way("two", RouteFactory(name="empty"))[0]
    some = RouteFactory(name="some", deployment=ready("s"), is_restricted=True)
    assert "some is only for some" in other_way("three", some)[0]


def test_a_route_that_a_rollout_moves(actor: Actor, route: Route) -> None:
    Route.objects.update(held_by="rollout 7")
    route.refresh_from_db()
    found = refused_start(actor, route, variants=two_arms(ready("new")))
    assert found == {"route": ["rollout 7 moves its traffic; wait until that has ended."]}
    started(actor, drafted(actor, route, name="words"))  # leads nowhere else


def test_a_subject_that_nobody_is(actor: Actor, route: Route) -> None:
    found = refused_start(actor, route, subject="conversation", eligibility={"doors": ["batch"]})
    assert "nobody would take part" in found["subject"][0]
    found = refused_start(actor, route, name="two", subject="conversation", pre_period_days=7)
    assert "set the days before to 0" in found["subject"][0]


# -- while it runs -----------------------------------------------------------------------------


def test_weights_change_while_it_runs(actor: Actor, running: Experiment) -> None:
    after = variant_weights_set(
        experiment=running, seen=running.version, actor=actor, weights={"b": 80}
    )
    assert [(each.name, each.weight) for each in variants_of(after)] == [("control", 50), ("b", 80)]
    assert after.weights_set_at is not None
    assert after.started_at is not None
    assert after.weights_set_at > after.started_at
    event = all_of(AuditEvent).latest("id")
    assert (event.action, event.changes) == (
        "experiment.weights_set",
        {"weights": [["control=50", "b=50"], ["control=50", "b=80"]]},
    )
    assert change_stamps()["experiments"] == 2


@pytest.mark.parametrize("weights", [{"c": 5}, {"b": 0}, {"b": 1001}])
def test_weights_that_cannot_be(actor: Actor, running: Experiment, weights: dict[str, int]) -> None:
    before, events = stored(running), said()
    with pytest.raises(ValidationError) as refused:
        variant_weights_set(experiment=running, seen=running.version, actor=actor, weights=weights)
    assert list(refused.value.message_dict) == ["weights"]
    assert (stored(running), said()) == (before, events)


def test_nothing_else_changes_while_it_runs(actor: Actor, running: Experiment) -> None:
    before = stored(running)
    changes: list[dict[str, Any]] = [
        {"subject": "token"},
        {"alpha": 0.01},
        {"variants": two_arms()},
        {"metrics": []},
        {"eligibility": {"doors": ["rest"]}},
    ]
    for fields in changes:
        with pytest.raises(ExperimentConflict, match="cannot change any more"):
            experiment_update(experiment=running, seen=running.version, actor=actor, **fields)
    assert stored(running) == before
    after = experiment_update(
        experiment=running, seen=running.version, actor=actor, hypothesis="It is cooler."
    )
    assert after.hypothesis == "It is cooler."


def test_stop(actor: Actor, running: Experiment) -> None:
    b = running.variants.get(name="b")
    over = experiment_stop(
        experiment=running, seen=running.version, actor=actor, because=" B is better. ", winner=b
    )
    assert (over.state, over.winner, over.slots) == ("stopped", b, [])
    assert over.stopped_because == "B is better."
    event = all_of(AuditEvent).latest("id")
    assert event.changes == {"because": "B is better.", "winner": "b"}
    assert change_stamps()["experiments"] == 2
    with pytest.raises(ExperimentConflict, match="does not run"):
        experiment_stop(experiment=over, seen=over.version, actor=actor, because="Again.")
    with pytest.raises(ExperimentConflict, match="has stopped"):
        experiment_update(experiment=over, seen=over.version, actor=actor, hypothesis="New.")
    with pytest.raises(ExperimentConflict, match="has stopped"):
        variant_weights_set(experiment=over, seen=over.version, actor=actor, weights={"b": 1})


def test_a_stop_says_why_and_names_its_own_winner(
    actor: Actor, route: Route, running: Experiment
) -> None:
    before = stored(running)
    stranger = drafted(actor, route, name="other").variants.first()
    for fields in ({"because": " "}, {"because": "Enough.", "winner": stranger}):
        with pytest.raises(ValidationError):
            experiment_stop(experiment=running, seen=running.version, actor=actor, **fields)
    assert stored(running) == before


def test_create_alone_needs_little(actor: Actor, route: Route) -> None:
    experiment = experiment_create(actor=actor, name="bare", route=route)
    assert variants_of(experiment) == []
