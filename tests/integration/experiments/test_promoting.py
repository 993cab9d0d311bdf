"""A winner becomes what its route does: the experiment stops and a rollout begins, together or not
at all."""

from typing import Any

import pytest
from django.core.exceptions import ValidationError

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.experiments.exceptions import ExperimentConflict
from apps.experiments.models import Experiment, Variant
from apps.experiments.services import experiment_promote, experiment_start, experiment_stop
from apps.rollouts.exceptions import RolloutConflict
from apps.rollouts.models import Rollout
from apps.rollouts.types import StepSpec
from apps.routing.models import Route
from apps.routing.selectors import targets_of
from tests.factories import RouteFactory, UserFactory
from tests.integration.experiments.setting import drafted, ready, route_ready, two_arms
from tests.rows import all_of

pytestmark = pytest.mark.django_db

STEPS = (StepSpec(percent=10.0), StepSpec(percent=100.0, min_requests=0, min_minutes=0.0))


def running(actor: Actor, route: Route, **fields: Any) -> Experiment:
    draft = drafted(actor, route, **fields)
    return experiment_start(experiment=draft, seen=draft.version, actor=actor)


def b_of(experiment: Experiment) -> Variant:
    return Variant.objects.get(experiment=experiment, name="b")


def everything() -> tuple[Any, ...]:
    return (
        list(Experiment.objects.order_by("pk").values()),
        list(Route.objects.order_by("pk").values()),
        list(Rollout.objects.values()),
        all_of(AuditEvent).count(),
    )


def test_a_version_is_rolled_out(actor: Actor) -> None:
    route, new = route_ready(), ready("new")
    experiment = running(actor, route, variants=two_arms(new))
    person = UserFactory()
    done = experiment_promote(
        experiment=experiment,
        variant=b_of(experiment),
        seen=experiment.version,
        actor=actor,
        by=person,
        steps=STEPS,
    )
    assert (done.experiment.state, done.experiment.winner) == ("stopped", b_of(experiment))
    assert done.experiment.stopped_because == "b has won."
    rollout = done.rollout
    assert rollout is not None
    assert (rollout.candidate, rollout.state, rollout.started_by) == (new, "running", person)
    weights = {each.deployment.name: each.weight for each in targets_of(route)}
    assert weights["new"] * 9 == weights["chat-old"]
    actions = list(all_of(AuditEvent).order_by("id").values_list("action", flat=True))
    assert actions[-1] == "experiment.promoted"
    assert {"experiment.stopped", "rollout.started"} < set(actions)


def test_one_that_has_stopped_can_still_win(actor: Actor) -> None:
    route = route_ready()
    experiment = running(actor, route, variants=two_arms(ready("new")))
    over = experiment_stop(
        experiment=experiment, seen=experiment.version, actor=actor, because="It is enough."
    )
    done = experiment_promote(
        experiment=over, variant=b_of(over), seen=over.version, actor=actor, by=None
    )
    assert done.experiment.winner == b_of(over)
    assert done.experiment.stopped_because == "It is enough."
    assert done.rollout is not None


def test_parameters_become_the_routes_defaults(actor: Actor) -> None:
    route = route_ready()
    Route.objects.update(defaults={"temperature": 0.9, "top_p": 0.5})
    experiment = running(actor, route)
    done = experiment_promote(
        experiment=experiment,
        variant=b_of(experiment),
        seen=experiment.version,
        actor=actor,
        by=None,
        because="It is cooler.",
    )
    assert done.rollout is None
    assert Route.objects.get().defaults == {"temperature": 0.2, "top_p": 0.5}
    assert done.experiment.stopped_because == "It is cooler."


def test_another_route_with_one_version(actor: Actor) -> None:
    route, new = route_ready(), ready("new")
    other = RouteFactory(name="other", deployment=new)
    experiment = running(actor, route, variants=two_arms(other_route=other))
    done = experiment_promote(
        experiment=experiment,
        variant=b_of(experiment),
        seen=experiment.version,
        actor=actor,
        by=None,
    )
    assert done.rollout is not None
    assert done.rollout.candidate == new


def test_what_cannot_be_promoted_changes_nothing(actor: Actor) -> None:
    route = route_ready()
    experiment = running(actor, route, variants=two_arms(prompt_template="Be short."))
    control = Variant.objects.get(experiment=experiment, is_control=True)
    before = everything()
    for variant, words in ((control, "does already"), (b_of(experiment), "your programs")):
        with pytest.raises(ValidationError, match=words):
            experiment_promote(
                experiment=experiment,
                variant=variant,
                seen=experiment.version,
                actor=actor,
                by=None,
            )
    draft = drafted(actor, route, name="draft")
    middle = everything()
    with pytest.raises(ExperimentConflict, match="has not run yet"):
        experiment_promote(
            experiment=draft, variant=b_of(draft), seen=draft.version, actor=actor, by=None
        )
    with pytest.raises(ExperimentConflict, match="changed by someone else"):
        experiment_promote(
            experiment=experiment, variant=b_of(experiment), seen=9, actor=actor, by=None
        )
    assert everything() == middle
    assert before[:3] == (middle[0][:1], middle[1], middle[2])


def test_where_the_rollout_cannot_start_the_experiment_runs_on(actor: Actor) -> None:
    route = route_ready()
    first = running(actor, route, variants=two_arms(ready("new"), parameters={"top_p": 0.5}))
    before = everything()
    with pytest.raises(ValidationError) as refused:
        experiment_promote(
            experiment=first,
            variant=b_of(first),
            seen=first.version,
            actor=actor,
            by=None,
            steps=(StepSpec(percent=50.0),),
        )
    assert "steps" in refused.value.message_dict
    assert everything() == before
    over = experiment_promote(
        experiment=first, variant=b_of(first), seen=first.version, actor=actor, by=None
    )
    after = everything()
    with pytest.raises(RolloutConflict):
        experiment_promote(
            experiment=over.experiment,
            variant=b_of(first),
            seen=over.experiment.version,
            actor=actor,
            by=None,
        )
    assert everything() == after
