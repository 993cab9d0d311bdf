"""Layers: who excludes whom, how much of one is free, and what two may set of the same requests."""

import pytest
from django.core.exceptions import ValidationError

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.selectors import change_stamps
from apps.experiments.exceptions import ExperimentConflict
from apps.experiments.models import Experiment
from apps.experiments.selectors import layer_free_percent, slots_of
from apps.experiments.services import (
    experiment_stop,
    experiment_update,
    layer_create,
    layer_update,
)
from apps.routing.models import Route
from tests.factories import LayerFactory
from tests.integration.experiments.setting import (
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


def test_experiments_of_a_layer_hold_disjoint_slots(actor: Actor, route: Route) -> None:
    layer = layer_create(actor=actor, name="words", holdout_percent=10.0)
    one = started(actor, drafted(actor, route, name="one", layer=layer, share_percent=30.0))
    two = started(actor, drafted(actor, route, name="two", layer=layer, share_percent=50.0))
    assert (slots_of(one), slots_of(two)) == (((1000, 4000),), ((4000, 9000),))
    assert layer_free_percent(layer) == 10.0
    three = drafted(actor, route, name="three", layer=layer, share_percent=20.0)
    with pytest.raises(ValidationError) as refused:
        started(actor, three)
    assert refused.value.message_dict == {
        "share_percent": [
            "10 % of the layer words is free, and it needs 20 %. Take less, another layer, or "
            "stop an experiment there."
        ]
    }
    experiment_stop(experiment=one, seen=one.version, actor=actor, because="It is enough.")
    assert slots_of(started(actor, three)) == ((1000, 3000),)


def test_a_share_that_grows_adds_slots_and_moves_none(actor: Actor, route: Route) -> None:
    layer = layer_create(actor=actor, name="words")
    one = started(actor, drafted(actor, route, name="one", layer=layer, share_percent=10.0))
    two = started(actor, drafted(actor, route, name="two", layer=layer, share_percent=10.0))
    grown = experiment_update(experiment=one, seen=one.version, actor=actor, share_percent=25.0)
    assert slots_of(grown) == ((0, 1000), (2000, 3500))
    assert change_stamps()["experiments"] == 3
    before = stored(two)
    for share, words in ((5.0, "can only grow"), (90.0, "65 % of the layer words is free")):
        with pytest.raises(ValidationError) as refused:
            experiment_update(experiment=two, seen=two.version, actor=actor, share_percent=share)
        assert words in refused.value.message_dict["share_percent"][0]
    assert stored(two) == before


def test_a_layer_has_one_kind_of_subject(actor: Actor, route: Route, running: Experiment) -> None:
    other = drafted(actor, route, name="other", subject="token", share_percent=1.0)
    with pytest.raises(ValidationError) as refused:
        started(actor, other)
    assert "assigned by end user" in refused.value.message_dict["subject"][0]


def test_two_layers_may_not_set_the_same(actor: Actor, route: Route, running: Experiment) -> None:
    layer = LayerFactory(name="second")
    same = drafted(actor, route, name="same", layer=layer)
    with pytest.raises(ValidationError) as refused:
        started(actor, same)
    assert refused.value.message_dict == {
        "variants": [
            "cooler, in the layer default, sets temperature of the same requests. Use its layer, "
            "where they exclude each other, or stop it."
        ]
    }
    assert Experiment.objects.get(pk=same.pk).state == "draft"
    arms = two_arms(ready("new"), prompt_template="Be short. {system}")
    started(actor, drafted(actor, route, name="version", layer=layer, variants=arms))
    third = drafted(
        actor, route, name="third", layer=LayerFactory(), variants=two_arms(ready("newer"))
    )
    with pytest.raises(ValidationError, match="sets where requests go of the same requests"):
        started(actor, third)


def test_layer_update(actor: Actor, route: Route) -> None:
    layer = layer_create(actor=actor, name="words", holdout_percent=10.0)
    after = layer_update(layer=layer, seen=1, actor=actor, holdout_percent=20.0)
    assert (after.version, after.holdout_percent) == (2, 20.0)
    assert all_of(AuditEvent).latest("id").changes == {"holdout_percent": [10.0, 20.0]}
    with pytest.raises(ExperimentConflict):
        layer_update(layer=layer, seen=1, actor=actor, holdout_percent=30.0)
    started(actor, drafted(actor, route, layer=after, share_percent=50.0))
    with pytest.raises(ValidationError, match="runs on subjects of these"):
        layer_update(layer=layer, seen=2, actor=actor, holdout_percent=20.5)
    with pytest.raises(ValidationError):
        layer_update(layer=layer, seen=2, actor=actor, holdout_percent=60.0)
    layer.refresh_from_db()
    assert (layer.version, layer.holdout_percent) == (2, 20.0)
