"""The rows beside an experiment, as its services write them: its arms, and what it is judged by.
Each change is told as [before, after]."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from django.core.exceptions import ValidationError

from apps.experiments.metrics import UnknownMetric, metric_of
from apps.experiments.models import Experiment, ExperimentMetric, Variant
from apps.experiments.selectors import metrics_of, variants_of
from apps.experiments.types import MAX_METRICS, MAX_VARIANTS, MetricSpec, VariantSpec
from apps.routing.selectors import defaults_problems

Change = dict[str, list[list[str]]]


def variants_write(experiment: Experiment, variants: Sequence[VariantSpec]) -> Change:
    """Put these in place of those that there are, which keep their rows where their names stay.

    Raises:
        ValidationError: of ``variants``; says what is wrong with them.
    """
    before = variants_of(experiment)
    after = sorted(variants, key=lambda each: not each.is_control)
    if before == after:
        return {}
    if problem := variants_problem(variants):
        raise ValidationError({"variants": problem})
    rows = Variant.objects.filter(experiment=experiment)
    rows.exclude(name__in=[each.name for each in after]).delete()
    rows.update(is_control=False)  # of two there is never more than one
    kept = {row.name: row for row in rows}
    for spec in after:
        row = kept.get(spec.name, Variant(experiment=experiment, name=spec.name))
        row.weight, row.is_control = spec.weight, spec.is_control
        row.deployment, row.other_route = spec.deployment, spec.other_route
        row.parameters, row.prompt_template = dict(spec.parameters), spec.prompt_template
        _row_write(row, field="variants", name=spec.name)
    return {"variants": [_said(before), _said(after)]}


def metrics_write(experiment: Experiment, metrics: Sequence[MetricSpec]) -> Change:
    """Put these in place of those that there are.

    Raises:
        ValidationError: of ``metrics``; says what is wrong with them.
    """
    before = metrics_of(experiment)
    if before == list(metrics):
        return {}
    if problem := metrics_problem(metrics):
        raise ValidationError({"metrics": problem})
    ExperimentMetric.objects.filter(experiment=experiment).delete()
    for spec in metrics:
        row = ExperimentMetric(
            experiment=experiment,
            metric=spec.metric,
            role=spec.role,
            better=spec.better,
            tolerance=spec.tolerance,
        )
        _row_write(row, field="metrics", name=spec.metric)
    return {"metrics": [_said(before), _said(metrics)]}


def weights_write(experiment: Experiment, weights: Mapping[str, int]) -> Change:
    """Give the named arms these weights; the others keep theirs.

    Raises:
        ValidationError: of ``weights``.
    """
    before = variants_of(experiment)
    if strange := sorted(set(weights) - {each.name for each in before}):
        raise ValidationError({"weights": f"There is no variant {strange[0][:40]!r}."})
    rows = [row for row in Variant.objects.filter(experiment=experiment) if row.name in weights]
    for row in rows:
        row.weight = weights[row.name]
        _row_write(row, field="weights", name=row.name)
    after = variants_of(experiment)
    if before == after:
        return {}
    return {"weights": [_weights_said(before), _weights_said(after)]}


def variants_problem(variants: Sequence[VariantSpec]) -> str | None:
    """Return why these cannot be arms together, also of a draft; None where they can."""
    if len(variants) > MAX_VARIANTS:
        return f"There may be {MAX_VARIANTS} at most."
    if twice := _twice([each.name for each in variants]):
        return f"{twice} is there twice."
    if sum(each.is_control for each in variants) > 1:
        return "Only one can be the control."
    for each in variants:
        if each.deployment is not None and each.other_route is not None:
            return f"{each.name}: give a deployment or another route, not both."
        if problems := defaults_problems(each.parameters):
            return f"{each.name}: {' '.join(problems)}"
    return None


def metrics_problem(metrics: Sequence[MetricSpec]) -> str | None:
    """Return why an experiment cannot be judged by these, also while it is a draft."""
    if len(metrics) > MAX_METRICS:
        return f"There may be {MAX_METRICS} at most."
    if twice := _twice([f"{each.metric} as {each.role}" for each in metrics]):
        return f"{twice} is there twice."
    for each in metrics:
        try:
            metric_of(each.metric)
        except UnknownMetric as error:
            return str(error)
    if sum(each.role == ExperimentMetric.Role.PRIMARY for each in metrics) > 1:
        return "Only one can be primary: the planned number of subjects is for one."
    for each in metrics:
        try:
            metric_of(each.metric)
        except UnknownMetric as error:
            return str(error)
    return None


def _row_write(row: Any, *, field: str, name: str) -> None:
    """Raises ValidationError. What concerns several rows, and both ways of one, was asked before:
    asking the database of each again is most of what the set-up page would wait for."""
    try:
        row.full_clean(exclude={"experiment"}, validate_unique=False, validate_constraints=False)
    except ValidationError as error:
        said = " ".join(error.messages)
        raise ValidationError({field: f"{name[:60]}: {said}"}) from None
    row.save()


def _twice(names: Sequence[str]) -> str | None:
    return next((name[:80] for name, n in Counter(names).items() if n > 1), None)


def _said(specs: Sequence[VariantSpec] | Sequence[MetricSpec]) -> list[str]:
    return [str(each) for each in specs]


def _weights_said(specs: Sequence[VariantSpec]) -> list[str]:
    return [f"{each.name}={each.weight}" for each in specs]
