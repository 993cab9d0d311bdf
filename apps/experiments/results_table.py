"""Results as a file's lines: one for each arm in each metric, of all and by segment."""

from collections.abc import Iterator
from typing import Final

from apps.experiments.results import ArmLine, Effect, ExperimentResults, MetricLine

HEAD: Final = (
    "experiment", "segment", "metric", "role", "unit", "better", "variant", "is_control",
    "subjects", "value", "control", "effect", "effect_low", "effect_high", "difference",
    "difference_low", "difference_high", "p_value", "numerator", "denominator", "verdict",
)  # fmt: skip

Cell = str | int | float | None


def csv_lines(results: ExperimentResults) -> Iterator[tuple[Cell, ...]]:
    """Yield the head, then the lines: of each metric the control, then the others. Effects are
    parts: 0.05 is five percent."""
    yield HEAD
    for metric in results.metrics:
        effects = {effect.arm: effect for effect in metric.effects}
        for arm in results.arms:
            yield _line(results, metric, arm, effects.get(arm.name))
    if (primary := results.primary) is None:
        return
    arms = {arm.name: arm for arm in results.arms}
    for segment in results.segments:
        for effect in segment.effects:
            yield _line(results, primary, arms[effect.arm], effect, segment=segment.segment)


def _line(
    results: ExperimentResults,
    metric: MetricLine,
    arm: ArmLine,
    effect: Effect | None,
    *,
    segment: str = "",
) -> tuple[Cell, ...]:
    n_subjects, value = arm.n_subjects, metric.values.get(arm.name)
    if effect is not None:
        n_subjects, value = effect.n_subjects, effect.value
    numerator, denominator = metric.totals.get(arm.name, (None, None))
    counted = (numerator, denominator) if not segment else (None, None)
    found = (
        (None,) * 8 + ("",)
        if effect is None
        else (
            effect.control, effect.effect, effect.low, effect.high, effect.difference,
            effect.difference_low, effect.difference_high, effect.p_value, effect.word,
        )
    )  # fmt: skip
    return (
        results.name, segment, metric.key, metric.role, metric.unit, metric.better, arm.name,
        "yes" if arm.is_control else "no", n_subjects, value, *found[:8], *counted, found[8],
    )  # fmt: skip
