"""Writes of layers: see ``services``."""

from __future__ import annotations

import secrets
from typing import Final, TypedDict, Unpack

from django.core.exceptions import ValidationError
from django.db import transaction

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.services import fields_set, row_lock
from apps.experiments.exceptions import ExperimentConflict
from apps.experiments.models import Experiment, Layer
from apps.experiments.selectors import n_held_out, slots_of
from apps.experiments.types import DEFAULT_LAYER

SALT_BYTES: Final = 16


class LayerFields(TypedDict, total=False):
    """What a person may set on a layer, by the names of its columns."""

    name: str
    holdout_percent: float


@transaction.atomic
def layer_create(*, actor: Actor, **fields: Unpack[LayerFields]) -> Layer:
    """Make a layer, with a salt of its own.

    Raises:
        ValidationError: names the field.
    """
    layer = Layer(salt=secrets.token_hex(SALT_BYTES), **fields)
    layer.full_clean()
    layer.save()
    event_record(action="layer.created", actor=actor, obj=layer, changes=fields)
    return layer


@transaction.atomic
def layer_update(*, layer: Layer, seen: int, actor: Actor, **fields: Unpack[LayerFields]) -> Layer:
    """Set the given fields. seen: the version that the caller saw.

    Raises:
        ExperimentConflict: somebody has changed it meanwhile.
        ValidationError: names the field; ``holdout_percent`` where an experiment that runs has
            subjects that would be held out.
    """
    current = row_lock(layer)
    if current.version != seen:
        raise ExperimentConflict(f"The layer {current} was changed by someone else.")
    changes = fields_set(current, fields)
    if not changes:
        return current
    current.full_clean()
    n_out = n_held_out(current)
    for each in Experiment.objects.filter(layer=current, state=Experiment.State.RUNNING):
        if any(first < n_out for first, _ in slots_of(each)):
            raise ValidationError(
                {"holdout_percent": f"{each} runs on subjects of these; stop it."}
            )
    current.version += 1
    current.save()
    event_record(action="layer.updated", actor=actor, obj=current, changes=changes)
    return current


def layer_default(*, actor: Actor) -> Layer:
    """Return the layer of experiments of which nobody says another, making it on first use."""
    found = Layer.objects.filter(name=DEFAULT_LAYER).first()
    return layer_create(actor=actor, name=DEFAULT_LAYER) if found is None else found
