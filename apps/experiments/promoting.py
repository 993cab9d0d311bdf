"""The winner of an experiment becomes what its route does: see ``services``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from django.core.exceptions import ValidationError
from django.db import transaction

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.services import row_lock
from apps.experiments.changing import State, changed, locked, stop
from apps.experiments.exceptions import ExperimentConflict
from apps.experiments.models import Experiment, Variant
from apps.experiments.types import Promotion
from apps.rollouts.services import rollout_start
from apps.rollouts.types import Approval, GuardrailSpec, StepSpec
from apps.routing.selectors import targets_of
from apps.routing.services import route_update

if TYPE_CHECKING:
    from apps.deployments.models import Deployment
    from apps.rbac.models import User


class RolloutOptions(TypedDict, total=False):
    """How the rollout of a winner is to go, as ``rollout_start`` takes it."""

    baseline: Deployment | None
    steps: Sequence[StepSpec]
    guardrails: Sequence[GuardrailSpec] | None
    approval: Approval
    needs_second_person: bool
    alpha: float


@transaction.atomic
def experiment_promote(
    *,
    experiment: Experiment,
    variant: Variant,
    seen: int,
    actor: Actor,
    by: User | None,
    because: str = "",
    **rollout: Unpack[RolloutOptions],
) -> Promotion:
    """Make a variant the winner: the experiment stops with it, if it still runs; a rollout begins
    to move the route's traffic to its version, step by step and guarded; its parameters become the
    route's defaults at once. seen: the version that the caller saw; by: the person, also behind a
    token.

    Raises:
        ExperimentConflict: somebody has changed it meanwhile, or it never ran.
        RolloutConflict: the route has an open rollout.
        ValidationError: of ``variant``, or as ``rollout_start``; nothing has changed then.
    """
    current = locked(experiment, seen)
    if current.state == State.DRAFT:
        raise ExperimentConflict(f"{current} has not run yet.")
    if problem := promote_problem(current, variant):
        raise ValidationError({"variant": problem})
    if current.state == State.RUNNING:
        stop(current, actor=actor, because=because or f"{variant} has won.", winner=variant)
    else:
        current.winner = variant
        changed(current, "experiment.winner_set", actor, {"winner": variant.name})
    route = row_lock(current.route)
    if variant.parameters:
        defaults = {**route.defaults, **variant.parameters}
        route = route_update(route=route, actor=actor, defaults=defaults)
    candidate = _candidate(variant)
    started = None
    if candidate is not None:
        started = rollout_start(route=route, candidate=candidate, actor=actor, by=by, **rollout)
    facts = {"variant": variant.name, "rollout": started and started.pk}
    event_record(action="experiment.promoted", actor=actor, obj=current, changes=facts)
    return Promotion(experiment=current, rollout=started)


def promote_problem(experiment: Experiment, variant: Variant) -> str | None:
    """Return why a route cannot become what a variant is; None where it can."""
    if variant.experiment_id != experiment.pk:
        return f"{variant} is no variant of {experiment}."
    if variant.is_control:
        return "The control is what the route does already; stop the experiment instead."
    if variant.prompt_template:
        return (
            "A route has no system message of its own: stop the experiment with this winner, and "
            "put its text into your programs."
        )
    if variant.other_route is not None and _candidate(variant) is None:
        return (
            f"{variant.other_route} leads to several deployments, or to none; a rollout moves to "
            "one. Roll out the one that you want."
        )
    if variant.deployment is None and variant.other_route is None and not variant.parameters:
        return "It sets nothing that the route could do."
    return None


def _candidate(variant: Variant) -> Deployment | None:
    """Return the one deployment that a variant leads to; None where there is no such."""
    if variant.deployment is not None or variant.other_route is None:
        return variant.deployment
    targets = [each for each in targets_of(variant.other_route) if each.weight]
    return targets[0].deployment if len(targets) == 1 else None
