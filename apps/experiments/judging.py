"""From totals to effects: each arm against the control, in each metric of an experiment.

Three families are kept apart, as a person reads them: the primary metric decides, secondary ones
explain, guardrails protect. Within each, p-values are adjusted over arms and metrics (Holm), and
intervals hold all together (Bonferroni). Everything is valid at every look; what an effect is to
the experiment is one word, by its interval and p-value alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from apps.experiments.metrics import Metric, metric_of
from apps.experiments.models import Experiment, ExperimentMetric, Variant, VariantTotal
from apps.experiments.results import Effect, MetricLine, Word
from apps.experiments.verdicts import breach_said, effect_said
from apps.statistics.comparing import Comparison, compare, metric_value
from apps.statistics.moments import Moments
from apps.statistics.multiplicity import bonferroni, holm

NONE: Final = Moments()
_Role = ExperimentMetric.Role

Totals = Mapping[tuple[int, str, str], Moments]  # variant, metric, segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """An experiment, its arms with the control first, its metrics, and what was counted."""

    experiment: Experiment
    variants: tuple[Variant, ...]
    metrics: tuple[ExperimentMetric, ...]
    totals: Totals

    @property
    def control(self) -> Variant | None:
        return next((each for each in self.variants if each.is_control), None)

    @property
    def arms(self) -> tuple[Variant, ...]:
        """Those that are compared with the control."""
        return tuple(each for each in self.variants if not each.is_control)

    def total(self, variant: Variant, metric: str, segment: str = "") -> Moments:
        return self.totals.get((variant.pk, metric, segment), NONE)


def ground_of(experiment: Experiment, *, segment: str | None = "") -> Ground:
    """Read what judging takes, in three queries. segment: of the totals; None for all of them."""
    totals = VariantTotal.objects.filter(variant__experiment=experiment)
    if segment is not None:
        totals = totals.filter(segment=segment)
    rows = totals.values_list("variant_id", "metric", "segment", "moments")
    return Ground(
        experiment=experiment,
        variants=tuple(Variant.objects.filter(experiment=experiment)),
        metrics=tuple(ExperimentMetric.objects.filter(experiment=experiment)),
        totals={(pk, key, part): Moments.from_json(sums) for pk, key, part, sums in rows},
    )


def metric_lines(ground: Ground) -> tuple[MetricLine, ...]:
    """Return every metric with every arm's effect, the primary one first."""
    lines: list[MetricLine] = []
    for role in (_Role.PRIMARY, _Role.GUARDRAIL, _Role.SECONDARY):
        family = [each for each in ground.metrics if each.role == role]
        alpha = bonferroni(ground.experiment.alpha, len(family) * len(ground.arms))
        compared = {
            (each.metric, arm.pk): _compared(ground, each, arm, alpha=alpha)
            for each in family
            for arm in ground.arms
        }
        p_values = holm(
            {key: found.p_value for key, found in compared.items() if found.p_value is not None}
        )
        for each in family:
            effects = tuple(
                _effect(ground, each, arm, compared[each.metric, arm.pk], p_values)
                for arm in ground.arms
            )
            lines.append(_line(ground, each, effects, alpha=alpha))
    return tuple(lines)


def segment_effects(ground: Ground, segment: str) -> tuple[Effect, ...]:
    """Return the arms' effects on the primary metric in one part of the subjects, each on its own:
    nothing is adjusted for how many parts there are."""
    for each in ground.metrics:
        if each.role == _Role.PRIMARY:
            alpha = ground.experiment.alpha
            found = {
                arm.pk: _compared(ground, each, arm, alpha=alpha, segment=segment)
                for arm in ground.arms
            }
            p_values = {
                (each.metric, pk): one.p_value
                for pk, one in found.items()
                if one.p_value is not None
            }
            return tuple(_effect(ground, each, arm, found[arm.pk], p_values) for arm in ground.arms)
    return ()


def is_breached(line: MetricLine, effect: Effect) -> bool:
    """Say whether an arm is worse than a guardrail allows, whatever in its interval is true."""
    if line.role != "guardrail" or effect.low is None or effect.high is None:
        return False
    if line.better == ExperimentMetric.Better.LOWER:
        return effect.low > line.tolerance
    return effect.high < -line.tolerance


def breaches(lines: Iterable[MetricLine]) -> tuple[str, ...]:
    """Return which arms break which guardrails, in words."""
    return tuple(
        breach_said(line, effect)
        for line in lines
        for effect in line.effects
        if is_breached(line, effect)
    )


def planned_units(experiment: Experiment, n_variants: int) -> int:
    """Return at how many subjects of two arms together intervals are to be narrowest. Whatever
    weights are set meanwhile, it stays."""
    return max(2, round(2 * experiment.planned_units / max(n_variants, 2)))


def _compared(
    ground: Ground, row: ExperimentMetric, arm: Variant, *, alpha: float, segment: str = ""
) -> Comparison:
    control = ground.control
    return compare(
        NONE if control is None else ground.total(control, row.metric, segment),
        ground.total(arm, row.metric, segment),
        kind=metric_of(row.metric).kind,
        alpha=alpha,
        planned_units=planned_units(ground.experiment, len(ground.variants)),
    )


def _effect(
    ground: Ground,
    row: ExperimentMetric,
    arm: Variant,
    found: Comparison,
    p_values: Mapping[tuple[str, int], float],
) -> Effect:
    scale = metric_of(row.metric).scale
    effect = Effect(
        arm=arm.name,
        metric=row.metric,
        value=_scaled(found.treatment, scale),
        control=_scaled(found.control, scale),
        effect=found.effect,
        low=found.low,
        high=found.high,
        difference=_scaled(found.difference, scale),
        difference_low=_scaled(found.difference_low, scale),
        difference_high=_scaled(found.difference_high, scale),
        p_value=p_values.get((row.metric, arm.pk)),
        n_subjects=found.n_treatment,
        is_reduced=found.is_reduced,
        word="nothing",
        said="",
    )
    effect = replace(effect, word=_word(ground.experiment, row, effect))
    return replace(effect, said=effect_said(effect, role=row.role, min_effect=_least(ground, row)))


def _word(experiment: Experiment, row: ExperimentMetric, effect: Effect) -> Word:
    if effect.p_value is None or effect.difference is None:
        return "nothing"
    if effect.p_value <= experiment.alpha and effect.difference:
        is_higher = effect.difference > 0
        is_good = is_higher == (row.better == ExperimentMetric.Better.HIGHER)
        return "better" if is_good else "worse"
    least = row.tolerance if row.role == _Role.GUARDRAIL else experiment.min_effect
    if effect.low is None or effect.high is None:
        return "unclear"
    return "same" if -least < effect.low and effect.high < least else "unclear"


def _least(ground: Ground, row: ExperimentMetric) -> float:
    return row.tolerance if row.role == _Role.GUARDRAIL else ground.experiment.min_effect


def _line(
    ground: Ground, row: ExperimentMetric, effects: Sequence[Effect], *, alpha: float
) -> MetricLine:
    metric = metric_of(row.metric)
    totals = {each.name: ground.total(each, row.metric) for each in ground.variants}
    return MetricLine(
        key=metric.key,
        label=metric.label,
        unit=metric.unit,
        kind=metric.kind,
        says=metric.says,
        role=row.role,  # type: ignore[arg-type]  # one of its choices
        better=row.better,
        tolerance=row.tolerance,
        alpha=alpha,
        values={name: value_of(metric, each) for name, each in totals.items()},
        totals={name: (each.y, each.x) for name, each in totals.items()},
        effects=tuple(effects),
    )


def value_of(metric: Metric, moments: Moments) -> float | None:
    """Return a metric as observed, in its unit; None without anything."""
    return _scaled(metric_value(moments, metric.kind), metric.scale)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale
