"""Where a tenant wants two persons for a new version, an experiment that would send it the route's
first requests takes two as well: one writes the draft, another starts it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.experiments.selectors import variants_of
from apps.rbac.selectors import known_person
from apps.rollouts.exceptions import SecondPersonNeeded
from apps.routing.selectors import are_two_demanded, targets_of

if TYPE_CHECKING:
    from apps.audit.types import Actor
    from apps.deployments.models import Deployment
    from apps.experiments.models import Experiment
    from apps.experiments.types import VariantSpec


def newcomer_of(experiment: Experiment) -> Deployment | None:
    """Return a deployment that would get requests of its route for the first time, where a tenant
    that the route is for wants two persons for that; None where there is no such."""
    known = {each.deployment.pk for each in targets_of(experiment.route) if each.is_asked}
    led = [each for variant in variants_of(experiment) for each in led_to(variant)]
    new = next((each for each in led if each.pk not in known), None)
    return new if new is not None and are_two_demanded(experiment.route) else None


def led_to(variant: VariantSpec) -> list[Deployment]:
    """Return where a variant says that requests go."""
    if variant.deployment is not None:
        return [variant.deployment]
    other = variant.other_route
    return [] if other is None else [each.deployment for each in targets_of(other) if each.weight]


def start_refuse(experiment: Experiment, *, actor: Actor) -> None:
    """Raises SecondPersonNeeded where whoever starts it has written it, or either is unknown."""
    if (new := newcomer_of(experiment)) is None:
        return
    why = f"{new} is new on {experiment.route}, and two persons are wanted for that"
    person = known_person(actor)
    if person is None:
        raise SecondPersonNeeded(f"{why}; it has to be known who starts it.")
    if experiment.drafted_by_id is None:
        raise SecondPersonNeeded(f"{why}; who wrote this draft is not known. Write it anew.")
    if person.pk == experiment.drafted_by_id:
        raise SecondPersonNeeded(f"{why}. You wrote it; somebody else has to start it.")


def growth_refuse(experiment: Experiment) -> None:
    """Raises SecondPersonNeeded where what runs would get another part than the two agreed on."""
    if (new := newcomer_of(experiment)) is not None:
        raise SecondPersonNeeded(
            f"{new} is new on {experiment.route}, and its part is what two persons agreed on. Stop "
            "this experiment and begin another."
        )
