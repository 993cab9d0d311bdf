"""Many at once, and what fails midway: of those who change one experiment one wins and the others
are told, and a change is there with its event or not at all."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connection

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.models import ChangeStamp
from apps.core.tenancy import every_tenant
from apps.experiments import changing, layers, promoting, services
from apps.experiments.assigning import N_SLOTS
from apps.experiments.exceptions import ExperimentConflict
from apps.experiments.models import Experiment, ExperimentMetric, Layer, Variant
from apps.experiments.selectors import slots_of
from apps.experiments.services import (
    experiment_create,
    experiment_delete,
    experiment_promote,
    experiment_start,
    experiment_stop,
    experiment_update,
    layer_create,
    layer_update,
    variant_weights_set,
)
from apps.rollouts.models import Rollout
from apps.routing.models import Route, RouteTarget
from tests.factories import LayerFactory
from tests.integration.experiments.setting import drafted, ready, route_ready, two_arms
from tests.rows import all_of

N_AT_ONCE = 20


def at_once(works: Sequence[Callable[[], object]]) -> list[str]:
    """Run each in a thread of its own, all from the same moment on; return what came of each."""
    barrier = Barrier(len(works))

    def run(work: Callable[[], object]) -> str:
        try:
            barrier.wait()
            with every_tenant("a test"):
                work()
        except (ExperimentConflict, ValidationError) as error:
            return type(error).__name__
        finally:
            connection.close()
        return "done"

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


def events(action: str) -> int:
    return all_of(AuditEvent).filter(action=action).count()


@pytest.mark.django_db(transaction=True)
def test_of_twenty_who_start_it_one_does(actor: Actor) -> None:
    experiment = drafted(actor, route_ready())
    came = at_once(
        [lambda: experiment_start(experiment=experiment, seen=1, actor=actor)] * N_AT_ONCE
    )
    assert Counter(came) == {"done": 1, "ExperimentConflict": N_AT_ONCE - 1}
    experiment.refresh_from_db()
    assert (experiment.state, experiment.version) == ("running", 2)
    assert slots_of(experiment) == ((0, N_SLOTS),)
    assert events("experiment.started") == 1
    assert ChangeStamp.objects.get(name="experiments").value == 1


@pytest.mark.django_db(transaction=True)
def test_of_twenty_who_stop_or_change_it_one_does(actor: Actor) -> None:
    draft = drafted(actor, route_ready())
    running = experiment_start(experiment=draft, seen=1, actor=actor)
    b = Variant.objects.get(name="b")
    ways: list[Callable[[], object]] = [
        lambda: experiment_stop(experiment=running, seen=2, actor=actor, because="Enough."),
        lambda: variant_weights_set(experiment=running, seen=2, actor=actor, weights={"b": 70}),
        lambda: experiment_update(experiment=running, seen=2, actor=actor, hypothesis="New."),
        lambda: experiment_promote(experiment=running, variant=b, seen=2, actor=actor, by=None),
    ]
    came = at_once([ways[number % len(ways)] for number in range(N_AT_ONCE)])
    assert Counter(came) == {"done": 1, "ExperimentConflict": N_AT_ONCE - 1}
    running.refresh_from_db()
    assert running.version == 3
    won = [number % len(ways) for number, each in enumerate(came) if each == "done"]
    state = {
        "stopped": running.state == "stopped",
        "weights": Variant.objects.get(name="b").weight == 70,
        "hypothesis": running.hypothesis == "New.",
        "defaults": Route.objects.get().defaults == {"temperature": 0.2},
    }
    expected = (
        {"stopped"}, {"weights"}, {"hypothesis"}, {"stopped", "defaults"},
    )[won[0]]  # fmt: skip
    assert {name for name, is_so in state.items() if is_so} == expected
    changed = ("experiment.stopped", "experiment.weights_set", "experiment.updated")
    assert sum(map(events, changed)) == 1


@pytest.mark.django_db(transaction=True)
def test_a_layer_is_given_away_once(actor: Actor) -> None:
    route = route_ready()
    layer = layer_create(actor=actor, name="words", holdout_percent=5.0)
    drafts = [
        drafted(actor, route, name=f"e{number}", layer=layer, share_percent=10.0)
        for number in range(N_AT_ONCE)
    ]
    came = at_once(
        [
            lambda draft=draft: experiment_start(experiment=draft, seen=1, actor=actor)  # type: ignore[misc]
            for draft in drafts
        ]
    )
    assert Counter(came) == {"done": 9, "ValidationError": N_AT_ONCE - 9}
    running = Experiment.objects.filter(state="running")
    slots = [
        slot for each in running for first, end in slots_of(each) for slot in range(first, end)
    ]
    assert (len(slots), len(set(slots)), min(slots)) == (9000, 9000, 500)
    assert events("experiment.started") == 9


@pytest.mark.django_db(transaction=True)
def test_of_two_layers_that_set_the_same_one_starts(actor: Actor) -> None:
    route = route_ready()
    drafts = [drafted(actor, route, name=f"e{number}", layer=LayerFactory()) for number in range(8)]
    came = at_once(
        [
            lambda draft=draft: experiment_start(experiment=draft, seen=1, actor=actor)  # type: ignore[misc]
            for draft in drafts
        ]
    )
    assert Counter(came) == {"done": 1, "ValidationError": 7}
    assert Experiment.objects.filter(state="running").count() == 1


# -- neither or both -------------------------------------------------------------------------------


class Broken(RuntimeError):
    """What went wrong midway."""


def everything() -> dict[str, Any]:
    """Return all that a service may change."""
    models = (
        Layer, Experiment, Variant, ExperimentMetric, Route, RouteTarget, Rollout, ChangeStamp,
    )  # fmt: skip
    return {
        **{model.__name__: list(model.objects.order_by("pk").values()) for model in models},
        "events": list(all_of(AuditEvent).order_by("pk").values()),
    }


def works(actor: Actor) -> dict[str, Callable[[], object]]:
    """Return one call of each service, on rows that are there."""
    route = route_ready()
    draft = drafted(actor, route, name="draft", layer=LayerFactory())
    fit = drafted(actor, route, name="fit", layer=LayerFactory(), variants=two_arms(ready("new")))
    other = drafted(actor, route, name="running", layer=LayerFactory(), share_percent=50.0)
    running = experiment_start(experiment=other, seen=1, actor=actor)
    b = Variant.objects.get(experiment=running, name="b")
    led = experiment_start(experiment=fit, seen=1, actor=actor)
    to_new = Variant.objects.get(experiment=led, name="b")
    layer = draft.layer
    return {
        "layer_create": lambda: layer_create(actor=actor, name="more"),
        "layer_update": lambda: layer_update(layer=layer, seen=1, actor=actor, name="less"),
        "create": lambda: drafted(actor, route, name="new"),
        "create bare": lambda: experiment_create(actor=actor, name="bare", route=route),
        "update": lambda: experiment_update(
            experiment=draft, seen=1, actor=actor, variants=two_arms(), metrics=[], alpha=0.01
        ),
        "grow": lambda: experiment_update(
            experiment=running, seen=2, actor=actor, share_percent=60.0
        ),
        "weights": lambda: variant_weights_set(
            experiment=running, seen=2, actor=actor, weights={"b": 9}
        ),
        "stop": lambda: experiment_stop(experiment=running, seen=2, actor=actor, because="Done."),
        "delete": lambda: experiment_delete(experiment=draft, seen=1, actor=actor),
        "promote": lambda: experiment_promote(
            experiment=running, variant=b, seen=2, actor=actor, by=None
        ),
        "promote a version": lambda: experiment_promote(
            experiment=led, variant=to_new, seen=2, actor=actor, by=None
        ),
    }


NAMES = (
    "layer_create", "layer_update", "create", "create bare", "update", "grow", "weights", "stop",
    "delete", "promote", "promote a version",
)  # fmt: skip


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", NAMES)
def test_a_change_without_its_event_is_none(
    actor: Actor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    work = works(actor)[name]
    before = everything()

    def fail(**_: object) -> None:
        assert everything() != before or name == "delete"  # told before it goes
        raise Broken

    with monkeypatch.context() as patch:
        for module in (changing, layers, promoting, services):
            patch.setattr(module, "event_record", fail)
        with pytest.raises(Broken):
            work()
    assert everything() == before
    work()
    assert len(everything()["events"]) > len(before["events"])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["grow", "weights", "stop", "promote", "promote a version"])
def test_an_event_without_its_change_is_none(
    actor: Actor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What tells other processes comes last; where that fails, nothing has happened."""
    work = works(actor)[name]
    before = everything()

    def fail(_: str) -> None:
        assert len(everything()["events"]) > len(before["events"])
        raise Broken

    monkeypatch.setattr(changing, "change_stamp_bump", fail)
    with pytest.raises(Broken):
        work()
    assert everything() == before


@pytest.mark.django_db(transaction=True)
def test_a_start_that_fails_midway(actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = drafted(actor, route_ready())
    before = everything()

    def fail(**_: object) -> None:
        raise Broken

    with monkeypatch.context() as patch:
        patch.setattr(changing, "event_record", fail)
        with pytest.raises(Broken):
            experiment_start(experiment=draft, seen=1, actor=actor)
    assert everything() == before
    assert experiment_start(experiment=draft, seen=1, actor=actor).state == "running"
