"""The results of one experiment, put together from what was counted, in a bounded number of
queries: seven, whatever its size, and a few more where a model judges."""

from datetime import datetime, timedelta
from typing import Final

from django.apps import apps
from django.utils import timezone

from apps.core.tenancy import every_tenant
from apps.experiments.judged import judge_lines
from apps.experiments.judging import (
    Ground,
    breaches,
    ground_of,
    metric_lines,
    segment_effects,
)
from apps.experiments.metrics import REQUESTS, metric_of
from apps.experiments.mismatching import mismatch_of
from apps.experiments.models import Experiment, ExperimentMetric, Variant
from apps.experiments.results import (
    ArmLine,
    ExperimentResults,
    Power,
    SegmentLine,
    SeriesPoint,
)
from apps.experiments.series import series_of
from apps.experiments.totals import n_crossed_of, n_requests_of, n_subjects_of
from apps.experiments.verdicts import verdict_of
from apps.statistics.multiplicity import bonferroni
from apps.statistics.planning import baseline, detectable_effect, units_needed

_PRESENT: Final = timedelta(days=1)  # what the present rate is of
_LEAST_SPAN: Final = timedelta(minutes=10)


@every_tenant("an experiment is the platform's, whoever takes part")
def experiment_results(experiment: Experiment) -> ExperimentResults:
    """Return what came of an experiment until now. experiment: with its route at hand, to save a
    query."""
    now = timezone.now()
    ground = ground_of(experiment, segment=None)
    lines = metric_lines(ground)
    series = series_of(experiment, ground.variants)
    arms = _arm_lines(ground)
    mismatch = mismatch_of(ground)
    power = _power(ground, series, now=now)
    return ExperimentResults(
        id=experiment.pk,
        name=experiment.name,
        version=experiment.version,
        hypothesis=experiment.hypothesis,
        route=experiment.route.name,
        subject=experiment.subject,
        state=experiment.state,
        started_at=experiment.started_at,
        stopped_at=experiment.stopped_at,
        stopped_because=experiment.stopped_because,
        winner=next((v.name for v in ground.variants if v.pk == experiment.winner_id), None),
        at=now,
        looked_at=experiment.looked_at,
        alpha=experiment.alpha,
        arms=arms,
        metrics=lines,
        judges=judge_lines(experiment, lines),
        mismatch=mismatch,
        power=power,
        verdict=verdict_of(
            state=experiment.state,
            stopped_because=experiment.stopped_because,
            subject=experiment.subject,
            arms=arms,
            metrics=lines,
            breaches=breaches(lines),
            mismatch=mismatch,
            power=power,
        ),
        segments=_segment_lines(ground),
        series=series,
    )


def _arm_lines(ground: Ground) -> tuple[ArmLine, ...]:
    counts = {each.pk: n_subjects_of(ground, each) for each in ground.variants}
    whole, weights = sum(counts.values()), sum(each.weight for each in ground.variants)
    return tuple(
        ArmLine(
            id=each.pk,
            name=each.name,
            is_control=each.is_control,
            weight=each.weight,
            n_subjects=counts[each.pk],
            n_requests=n_requests_of(ground, each),
            n_crossed=n_crossed_of(ground, each),
            share=counts[each.pk] / whole if whole else 0.0,
            expected=each.weight / weights,
        )
        for each in ground.variants
    )


def _segment_lines(ground: Ground) -> tuple[SegmentLine, ...]:
    """Return the parts of the subjects, doors first, then tenants with many of them first."""
    counts: dict[str, int] = {}
    for (_, metric, segment), moments in ground.totals.items():
        if metric == REQUESTS and segment and moments.n:
            counts[segment] = counts.get(segment, 0) + moments.n
    slugs = _tenant_slugs([_id_of(each) for each in counts if each.startswith("tenant:")])
    ordered = sorted(counts, key=lambda each: (each.startswith("tenant:"), -counts[each], each))
    return tuple(
        SegmentLine(
            segment=each,
            label=_segment_label(each, slugs),
            n_subjects=counts[each],
            effects=segment_effects(ground, each),
        )
        for each in ordered
    )


def _segment_label(segment: str, slugs: dict[int, str]) -> str:
    if segment.startswith("tenant:"):
        pk = _id_of(segment)
        return f"Tenant {slugs.get(pk, f'{pk}, which is gone')}"
    return f"Door {segment.partition(':')[2]}"


def _id_of(segment: str) -> int:
    return int(segment.partition(":")[2])


def _tenant_slugs(pks: list[int]) -> dict[int, str]:
    tenants = apps.get_model("tenants", "Tenant")
    return dict(tenants.objects.filter(pk__in=pks).values_list("pk", "slug")) if pks else {}


def _power(ground: Ground, series: tuple[SeriesPoint, ...], *, now: datetime) -> Power:
    """Say how far it is, by what the control has shown of the primary metric; the least of the
    arms counts, as it is the last to have enough."""
    experiment = ground.experiment
    n_subjects = sum(n_subjects_of(ground, each) for each in ground.variants)
    n_planned, detectable = _planned(ground, n_subjects)
    n_more = None if n_planned is None else max(0, n_planned - n_subjects)
    per_day = _per_day(experiment, series, n_subjects, now=now)
    return Power(
        n_subjects=n_subjects,
        n_planned=n_planned,
        min_effect=experiment.min_effect,
        power=experiment.power,
        detectable=detectable,
        n_more=n_more,
        per_day=per_day,
        days=n_more / per_day if n_more is not None and per_day else None,
    )


def _planned(ground: Ground, n_subjects: int) -> tuple[int | None, float | None]:
    experiment, control = ground.experiment, ground.control
    primary = next(
        (each for each in ground.metrics if each.role == ExperimentMetric.Role.PRIMARY), None
    )
    if control is None or primary is None or not ground.arms:
        return None, None
    kind = metric_of(primary.metric).kind
    expected = baseline(ground.total(control, primary.metric), kind)
    if expected is None:
        return None, None
    least = min(ground.arms, key=lambda each: each.weight)
    alpha = bonferroni(experiment.alpha, len(ground.arms))
    shares = _shares(ground.variants, control, least)
    is_lower = primary.better == ExperimentMetric.Better.LOWER and experiment.min_effect < 1
    try:
        plan = units_needed(
            expected,
            kind=kind,
            effect=-experiment.min_effect if is_lower else experiment.min_effect,
            shares=shares,
            alpha=alpha,
            power=experiment.power,
        )
        n_planned = plan.arriving
    except ValueError:  # no number of subjects would do
        n_planned = None
    if not n_subjects:
        return n_planned, None
    return n_planned, detectable_effect(
        expected,
        kind=kind,
        arriving=n_subjects,
        shares=shares,
        alpha=alpha,
        power=experiment.power,
    )


def _shares(variants: tuple[Variant, ...], control: Variant, arm: Variant) -> tuple[float, float]:
    whole = sum(each.weight for each in variants)
    return control.weight / whole, arm.weight / whole


def _per_day(
    experiment: Experiment, series: tuple[SeriesPoint, ...], n_subjects: int, *, now: datetime
) -> float | None:
    """Return how many new subjects a day comes at the rate of the last day, or of all of it."""
    if experiment.state != Experiment.State.RUNNING or experiment.started_at is None:
        return None
    since, n_then = experiment.started_at, 0
    for point in series:
        if point.at > now - _PRESENT:
            break
        since, n_then = point.at, sum(point.n_subjects.values())
    if now - since < _LEAST_SPAN:
        return None
    return (n_subjects - n_then) / ((now - since) / timedelta(days=1))
