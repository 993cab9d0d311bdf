"""Writes of experiments. Each is one transaction with its row lock, its audit event and, where it
concerns what runs, its change stamp."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Unpack

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.services import fields_set, plain, row_lock
from apps.core.tenancy import every_tenant
from apps.experiments.arms import metrics_write, variants_write, weights_write
from apps.experiments.assigning import n_slots, slots_joined, slots_of_share
from apps.experiments.changing import changed, locked, stop
from apps.experiments.exceptions import ExperimentConflict
from apps.experiments.layers import (
    SALT_BYTES,
    LayerFields,
    layer_create,
    layer_default,
    layer_update,
)
from apps.experiments.models import Experiment, Variant
from apps.experiments.promoting import experiment_promote
from apps.experiments.second_person import growth_refuse, start_refuse
from apps.experiments.selectors import slots_of
from apps.experiments.starting import (
    eligibility_problem,
    judges_held,
    slots_for,
    start_check,
    start_problems,
)
from apps.experiments.types import ExperimentFields, MetricSpec, VariantSpec
from apps.rbac.selectors import known_person

if TYPE_CHECKING:
    from apps.rbac.models import User

__all__ = [
    "LayerFields",
    "experiment_create",
    "experiment_delete",
    "experiment_promote",
    "experiment_start",
    "experiment_stop",
    "experiment_update",
    "layer_create",
    "layer_update",
    "start_problems",
    "variant_weights_set",
]

State = Experiment.State
_WHILE_IT_RUNS: Final = frozenset({"hypothesis", "share_percent"})


@transaction.atomic
def experiment_create(
    *,
    actor: Actor,
    variants: Sequence[VariantSpec] = (),
    metrics: Sequence[MetricSpec] = (),
    **fields: Unpack[ExperimentFields],
) -> Experiment:
    """Make a draft; without a layer it is in the one called default. What it takes to start is
    asked at the start.

    Raises:
        ValidationError: names the field; ``variants`` and ``metrics`` are such.
    """
    if "layer" not in fields:
        fields["layer"] = layer_default(actor=actor)
    experiment = Experiment(
        salt=secrets.token_hex(SALT_BYTES), drafted_by=known_person(actor), **fields
    )
    _clean(experiment)
    experiment.save()
    facts: dict[str, object] = {name: _plain(value) for name, value in fields.items()}
    changes = variants_write(experiment, variants) | metrics_write(experiment, metrics)
    facts |= {name: after for name, (_, after) in changes.items()}
    event_record(action="experiment.created", actor=actor, obj=experiment, changes=facts)
    return experiment


@transaction.atomic
def experiment_update(
    *,
    experiment: Experiment,
    seen: int,
    actor: Actor,
    variants: Sequence[VariantSpec] | None = None,
    metrics: Sequence[MetricSpec] | None = None,
    **fields: Unpack[ExperimentFields],
) -> Experiment:
    """Set the given fields; None leaves variants and metrics. All of a draft may change; of one
    that runs its hypothesis, and its share upwards: it then gets further subjects, and nobody
    moves. seen: the version that the caller saw.

    Raises:
        ExperimentConflict: somebody has changed it meanwhile, or its state does not allow it.
        SecondPersonNeeded: it runs with a share that two persons agreed on.
        ValidationError: names the field.
    """
    current = locked(experiment, seen)
    if current.state == State.STOPPED:
        raise ExperimentConflict(f"{current} has stopped; what it was stays as it is.")
    share_before = current.share_percent
    changes: dict[str, object] = {**fields_set(current, fields)}
    if variants is not None:
        changes |= variants_write(current, variants)
    if metrics is not None:
        changes |= metrics_write(current, metrics)
    if not changes:
        return current
    if current.state == State.RUNNING:
        if fixed := sorted(changes.keys() - _WHILE_IT_RUNS):
            raise ExperimentConflict(f"{current} runs; its {fixed[0]} cannot change any more.")
        if current.share_percent < share_before:
            problem = "While it runs its share can only grow: who takes part stays in it."
            raise ValidationError({"share_percent": problem})
        if current.share_percent > share_before:
            growth_refuse(current)
    else:
        current.drafted_by = known_person(actor)
    _clean(current)
    if current.state == State.RUNNING and current.share_percent > share_before:
        _slots_grow(current)
    changed(current, "experiment.updated", actor, changes)
    return current


@transaction.atomic
def variant_weights_set(
    *, experiment: Experiment, seen: int, actor: Actor, weights: Mapping[str, int]
) -> Experiment:
    """Change the shares of arms by their names, also while it runs: only the subjects move that
    must. seen: the version that the caller saw.

    Raises:
        ExperimentConflict, SecondPersonNeeded: as ``experiment_update``.
        ValidationError: of ``weights``.
    """
    current = locked(experiment, seen)
    if current.state == State.STOPPED:
        raise ExperimentConflict(f"{current} has stopped; what it was stays as it is.")
    if not (changes := weights_write(current, weights)):
        return current
    if current.state == State.RUNNING:
        growth_refuse(current)
        current.weights_set_at = timezone.now()
    else:
        current.drafted_by = known_person(actor)
    changed(current, "experiment.weights_set", actor, changes)
    return current


@transaction.atomic
def experiment_start(*, experiment: Experiment, seen: int, actor: Actor) -> Experiment:
    """Have it run: it gets slots of its layer, and its subjects their arms, from the next moment
    on. seen: the version that the caller saw.

    Raises:
        ExperimentConflict: somebody has changed it meanwhile, or it is no draft any more.
        SecondPersonNeeded: a tenant wants two persons, and this one wrote it or is not known.
        ValidationError: what is missing, by field.
    """
    current = locked(experiment, seen)
    if current.state != State.DRAFT:
        raise ExperimentConflict(f"{current} is {current.state} already.")
    # Who starts another one in this layer or on this route waits here.
    current.layer, current.route = row_lock(current.layer), row_lock(current.route)
    judges_held(current)
    start_check(current)
    start_refuse(current, actor=actor)
    slots = slots_for(current, n_more=slots_of_share(current.share_percent))
    current.slots = [list(each) for each in slots]
    current.state, current.started_at = State.RUNNING, timezone.now()
    current.weights_set_at = current.started_at
    current.started_by = _person(actor)
    changed(current, "experiment.started", actor, {"slots": current.slots})
    return current


@transaction.atomic
def experiment_stop(
    *,
    experiment: Experiment,
    seen: int,
    actor: Actor,
    because: str,
    winner: Variant | None = None,
) -> Experiment:
    """End it: its subjects go where their route leads, and its slots are free. because: in words.
    seen: the version that the caller saw.

    Raises:
        ExperimentConflict: somebody has changed it meanwhile, or it does not run.
        ValidationError: of ``because`` or ``winner``.
    """
    current = locked(experiment, seen)
    stop(current, actor=actor, because=because, winner=winner)
    return current


@transaction.atomic
def experiment_delete(*, experiment: Experiment, seen: int, actor: Actor) -> None:
    """Remove one that does not run, with all that was counted of it. seen: the version that the
    caller saw.

    Raises:
        ExperimentConflict: somebody has changed it meanwhile, or it runs.
    """
    current = locked(experiment, seen)
    if current.state == State.RUNNING:
        raise ExperimentConflict(f"{current} runs; stop it first.")
    event_record(action="experiment.deleted", actor=actor, obj=current)
    with every_tenant("an experiment goes with whoever took part"):
        current.delete()


def _clean(experiment: Experiment) -> None:
    """Raises ValidationError for what no state allows."""
    experiment.full_clean()
    if problem := eligibility_problem(experiment):
        raise ValidationError({"eligibility": problem})


def _slots_grow(current: Experiment) -> None:
    current.layer = row_lock(current.layer)
    held = slots_of(current)
    more = slots_for(current, n_more=slots_of_share(current.share_percent) - n_slots(held))
    current.slots = [list(each) for each in slots_joined(held, more)]


def _person(actor: Actor) -> User | None:
    if actor.kind != "user" or actor.id is None:
        return None
    return get_user_model().objects.filter(pk=actor.id).first()


def _plain(value: object) -> object:
    return value if isinstance(value, dict) else plain(value)
