"""What has to be so for an experiment to start, and the slots that it then gets. Pages ask the same
before anybody presses a button."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from django.core.exceptions import ValidationError

from apps.deployments.selectors import replica_endpoints
from apps.experiments.assigning import N_SLOTS, n_slots, slots_of_share, slots_taken
from apps.experiments.judged import judge_names_in, judges_named, judges_problem
from apps.experiments.models import Experiment, ExperimentMetric
from apps.experiments.second_person import led_to
from apps.experiments.selectors import (
    experiments_running_on,
    layer_free,
    metrics_of,
    variant_spec,
    variants_of,
)
from apps.experiments.types import MAX_AT_ONCE, Eligibility, VariantSpec
from apps.judging.services import judges_hold
from apps.routing.selectors import targets_of
from apps.tenants.selectors import tenant_by_slug

if TYPE_CHECKING:
    from apps.routing.models import Route

Problems = dict[str, str]


def start_problems(experiment: Experiment) -> Problems:
    """Return why an experiment cannot start now, by field; empty where it can."""
    variants = variants_of(experiment)
    found: Problems = {}
    for field, problem in (
        ("route", _route_problem(experiment.route, variants)),
        ("variants", _variants_problem(experiment.route, variants)),
        ("metrics", _metrics_problem(experiment)),
        ("eligibility", eligibility_problem(experiment)),
        ("subject", _subject_problem(experiment)),
        ("share_percent", _share_problem(experiment)),
    ):
        if problem:
            found[field] = problem
    if "variants" not in found and (problem := _overlap_problem(experiment, variants)):
        found["variants"] = problem
    return found


def start_check(experiment: Experiment) -> None:
    """Raises ValidationError, which names the fields."""
    if found := start_problems(experiment):
        raise ValidationError(dict(found))


def judges_held(experiment: Experiment) -> None:
    """Let nobody take away or rename a judge that it names until the transaction ends: whoever
    tries it then finds it running."""
    judges_hold(judges_named(experiment))


def slots_for(experiment: Experiment, *, n_more: int) -> list[tuple[int, int]]:
    """Return free slots of its layer; raises ValidationError of ``share_percent`` where there are
    too few."""
    free = layer_free(experiment.layer)
    if (n_free := n_slots(free)) < n_more:
        raise ValidationError({"share_percent": _too_few(experiment, n_free, n_more=n_more)})
    return slots_taken(free, n=n_more)


def eligibility_problem(experiment: Experiment) -> str | None:
    """Return what is wrong with whom it lets in; None where nothing is."""
    try:
        eligibility = Eligibility.read(experiment.eligibility)
    except ValueError as error:
        return str(error)
    for slug in sorted(eligibility.tenants):
        if tenant_by_slug(slug) is None:
            return f"There is no tenant {slug[:60]!r}."
    return None


def _route_problem(route: Route, variants: Sequence[VariantSpec]) -> str | None:
    if not route.is_active:
        return f"{route} is switched off."
    if any(each.deployment.task != "generate" for each in targets_of(route)):
        return f"{route} makes embeddings; experiments are for text."
    if route.held_by and any(_leads(each) for each in variants):
        return f"{route.held_by} moves its traffic; wait until that has ended."
    return None


def _variants_problem(route: Route, variants: Sequence[VariantSpec]) -> str | None:
    if len(variants) < 2:
        return "Give two at least: the control, and what is compared with it."
    if not any(each.is_control for each in variants):
        return "Say which is the control."
    ready = {each.deployment_id for each in replica_endpoints()}
    for each in variants:
        if problem := _way_problem(route, each, ready):
            return f"{each.name}: {problem}"
    return None


def _way_problem(route: Route, variant: VariantSpec, ready: set[int]) -> str | None:
    """Return why a variant's requests could go nowhere, or not where it says."""
    if (deployment := variant.deployment) is not None:
        if deployment.task != "generate":
            return f"{deployment} makes embeddings."
        return None if deployment.pk in ready else f"no replica of {deployment} is ready."
    if (other := variant.other_route) is None:
        return None
    if other.pk == route.pk:
        return f"{other} is the experiment's own route; leave it empty."
    if not other.is_active:
        return f"{other} is switched off."
    if other.is_restricted:
        return f"{other} is only for some, and {route} would lead others there."
    targets = led_to(variant)
    if any(each.task != "generate" for each in targets):
        return f"{other} makes embeddings."
    if not any(each.pk in ready for each in targets):
        return f"nothing that {other} leads to is ready."
    return None


def _metrics_problem(experiment: Experiment) -> str | None:
    metrics = metrics_of(experiment)
    if not any(each.role == ExperimentMetric.Role.PRIMARY for each in metrics):
        return "Give one that is primary: it is what the experiment is decided by."
    return judges_problem(judge_names_in(each.metric for each in metrics))


def _subject_problem(experiment: Experiment) -> str | None:
    kind = experiment.subject
    is_conversation = kind == Experiment.Subject.CONVERSATION
    doors = experiment.eligibility.get("doors") if isinstance(experiment.eligibility, dict) else ()
    if is_conversation and doors == ["batch"]:
        return "Requests of batches belong to no conversation: nobody would take part."
    if is_conversation and experiment.pre_period_days:
        return "A conversation has no time before it began; set the days before to 0."
    others = Experiment.objects.filter(layer=experiment.layer, state=Experiment.State.RUNNING)
    other = others.exclude(subject=kind).first()
    if other is not None:
        return (
            f"{other}, which runs in the layer {experiment.layer}, is assigned by "
            f"{other.get_subject_display().lower()}: they exclude each other only if both are "
            "assigned by the same. Take another layer."
        )
    return None


def _share_problem(experiment: Experiment) -> str | None:
    n_wanted = slots_of_share(experiment.share_percent)
    n_free = n_slots(layer_free(experiment.layer))
    return None if n_wanted <= n_free else _too_few(experiment, n_free, n_more=n_wanted)


def _too_few(experiment: Experiment, n_free: int, *, n_more: int) -> str:
    return (
        f"{_percent(n_free)} of the layer {experiment.layer} is free, and it needs "
        f"{_percent(n_more)}. Take less, another layer, or stop an experiment there."
    )


def _percent(n: int) -> str:
    return f"{n * 100 / N_SLOTS:g} %"


def _overlap_problem(experiment: Experiment, variants: Sequence[VariantSpec]) -> str | None:
    """Return what another experiment sets as well of the same requests. Those of its own layer
    have other subjects."""
    sets = _touched(variants)
    layers = {experiment.layer_id}
    for other in experiments_running_on(experiment.route_id):
        if other.layer_id == experiment.layer_id:
            continue
        layers.add(other.layer_id)
        if both := sorted(sets & _touched([variant_spec(row) for row in other.variants.all()])):
            return (
                f"{other}, in the layer {other.layer}, sets {', '.join(both)} of the same "
                f"requests. Use its layer, where they exclude each other, or stop it."
            )
    if len(layers) > MAX_AT_ONCE:
        return f"Experiments of {MAX_AT_ONCE} layers run on {experiment.route} already."
    return None


def _touched(variants: Sequence[VariantSpec]) -> set[str]:
    found = {name for each in variants for name in each.parameters}
    if any(_leads(each) for each in variants):
        found.add("where requests go")
    if any(each.prompt_template for each in variants):
        found.add("the system message")
    return found


def _leads(variant: VariantSpec) -> bool:
    return variant.deployment is not None or variant.other_route is not None
