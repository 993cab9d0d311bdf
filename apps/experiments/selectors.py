"""Reads of experiments: the snapshot that processes keep, and what runs beside what."""

import logging
from types import MappingProxyType
from typing import Final

from django.db.models import Prefetch, QuerySet

from apps.experiments.assigning import N_SLOTS, Slots, free_slots, n_slots, subject_digest
from apps.experiments.enrolling import ExperimentPlan, ExperimentSnapshot, VariantPlan
from apps.experiments.metrics import BUILT_IN, UnknownMetric, metric_of
from apps.experiments.models import Experiment, ExperimentMetric, Layer, Variant
from apps.experiments.news import ExperimentNews as ExperimentNews
from apps.experiments.news import experiments_news as experiments_news
from apps.experiments.results_file import results_csv
from apps.experiments.summary import experiment_results
from apps.experiments.types import Eligibility, MetricSpec, VariantSpec
from apps.feedback.types import JUDGE_PREFIX
from apps.judging.selectors import samplings_of
from apps.judging.types import Sampling
from apps.routing.selectors import destination_of
from apps.routing.types import Destination, RoutingSnapshot

__all__ = [
    "BUILT_IN",
    "ExperimentSnapshot",
    "UnknownMetric",
    "experiment_results",
    "metric_of",
    "results_csv",
    "snapshot",
    "subject_digest",
]

logger = logging.getLogger(__name__)

State: Final = Experiment.State


def snapshot(routing: RoutingSnapshot) -> ExperimentSnapshot:
    """Return the experiments that run: in one query where none does, else in three, and one more
    where any is judged by a model. routing: of the same moment, where other routes lead. One that
    cannot be read is left out: requests go on without it."""
    variants = Variant.objects.select_related("deployment__model_version", "other_route").defer(
        "deployment__model_version__manifest"
    )
    rows = (
        Experiment.objects.filter(state=State.RUNNING)
        .select_related("layer", "route")
        .prefetch_related(Prefetch("variants", queryset=variants), "metrics")
        .order_by("id")
    )
    judges = _judges_of(rows)
    by_route: dict[str, list[ExperimentPlan]] = {}
    for row in rows:
        try:
            plan = _plan(row, routing, judges=judges[row.pk])
        except Exception:
            logger.exception("Experiment %s is left out", row)
        else:
            by_route.setdefault(row.route.name, []).append(plan)
    return ExperimentSnapshot(
        by_route=MappingProxyType({name: tuple(plans) for name, plans in by_route.items()})
    )


def _judges_of(rows: "QuerySet[Experiment]") -> dict[int, tuple[Sampling, ...]]:
    """Return by experiment who scores its answers."""
    names = {
        row.pk: {
            each.metric.removeprefix(JUDGE_PREFIX)
            for each in row.metrics.all()
            if each.metric.startswith(JUDGE_PREFIX)
        }
        for row in rows
    }
    found = samplings_of({name for each in names.values() for name in each})
    return {pk: tuple(one for one in found if one.name in each) for pk, each in names.items()}


def _plan(
    row: Experiment, routing: RoutingSnapshot, *, judges: tuple[Sampling, ...]
) -> ExperimentPlan:
    variants = {each.pk: _variant_plan(each, routing) for each in row.variants.all()}
    if not variants:
        raise ValueError("it has no variants")
    return ExperimentPlan(
        id=row.pk,
        salt=row.salt,
        layer_id=row.layer_id,
        layer_salt=row.layer.salt,
        slots=slots_of(row),
        subject=row.subject,  # type: ignore[arg-type]  # one of its choices
        eligibility=Eligibility.read(row.eligibility),
        variants=MappingProxyType(variants),
        weights=MappingProxyType({key: each.weight for key, each in variants.items()}),
        needs_turns=any(each.prompt_template for each in variants.values()),
        judges=judges,
    )


def _variant_plan(row: Variant, routing: RoutingSnapshot) -> VariantPlan:
    return VariantPlan(
        id=row.pk,
        weight=row.weight,
        destinations=_destinations(row, routing),
        parameters=MappingProxyType(dict(row.parameters)),
        prompt_template=row.prompt_template,
    )


def _destinations(row: Variant, routing: RoutingSnapshot) -> tuple[Destination, ...] | None:
    """Return where a variant leads; nowhere where that does something else by now, or is not for
    everyone any more."""
    if row.deployment is not None:
        is_fit = row.deployment.task == "generate"
        return (destination_of(row.deployment, weight=100),) if is_fit else ()
    if row.other_route is not None:
        model = routing.routes.get(row.other_route.name)
        is_fit = model is not None and model.task == "generate" and model.audience is None
        return model.destinations if model is not None and is_fit else ()
    return None


# -- what there is -----------------------------------------------------------------------------


def experiment_named(name: str) -> Experiment | None:
    return experiments_described().filter(name=name).first()


def experiment_get(pk: int) -> Experiment | None:
    return experiments_described().filter(pk=pk).first()


def experiments_described() -> "QuerySet[Experiment]":
    """Return experiments with all that is said of them, the newest first, in three queries."""
    variants = Variant.objects.select_related("deployment", "other_route")
    return (
        Experiment.objects.select_related("route", "layer", "winner", "started_by")
        .prefetch_related(Prefetch("variants", queryset=variants), "metrics")
        .order_by("-id")
    )


def experiments_running_on(route_id: int) -> list[Experiment]:
    """Return what runs on a route, with its variants, the oldest first."""
    return list(
        Experiment.objects.filter(state=State.RUNNING, route_id=route_id)
        .select_related("layer")
        .prefetch_related("variants")
        .order_by("id")
    )


def layer_named(name: str) -> Layer | None:
    return Layer.objects.filter(name=name).first()


def layer_free(layer: Layer) -> list[tuple[int, int]]:
    """Return the slots of a layer that nothing holds that runs, in one query."""
    running = Experiment.objects.filter(layer=layer, state=State.RUNNING)
    return free_slots(map(slots_of, running), n_held_out=n_held_out(layer))


def layer_free_percent(layer: Layer) -> float:
    """Return how many percent of subjects an experiment could still get there."""
    return n_slots(layer_free(layer)) * 100 / N_SLOTS


def n_held_out(layer: Layer) -> int:
    return round(layer.holdout_percent * N_SLOTS / 100)


def slots_of(experiment: Experiment) -> Slots:
    return tuple((int(first), int(end)) for first, end in experiment.slots)


def variants_of(experiment: Experiment) -> list[VariantSpec]:
    """Return the arms that an experiment has, the control first."""
    rows = Variant.objects.filter(experiment=experiment).select_related(
        "deployment__model_version", "other_route"
    )
    return [variant_spec(row) for row in rows]


def variant_spec(row: Variant) -> VariantSpec:
    return VariantSpec(
        name=row.name,
        weight=row.weight,
        is_control=row.is_control,
        deployment=row.deployment,
        other_route=row.other_route,
        parameters=dict(row.parameters),
        prompt_template=row.prompt_template,
    )


def metrics_of(experiment: Experiment) -> list[MetricSpec]:
    """Return what an experiment is judged by."""
    rows = ExperimentMetric.objects.filter(experiment=experiment)
    return [
        MetricSpec(metric=row.metric, role=row.role, better=row.better, tolerance=row.tolerance)
        for row in rows
    ]
