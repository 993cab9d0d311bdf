"""Results in the words, numbers and drawings of their page. No queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings

from apps.experiments.models import Experiment
from apps.experiments.plots import (
    Band,
    Plot,
    Whisker,
    count_plot,
    effect_plot,
    percent,
    signed,
    whisker,
    whisker_reach,
)
from apps.experiments.results import ArmLine, Effect, ExperimentResults, MetricLine, Tone
from apps.experiments.types import VariantSpec

_WORDS: Final[Mapping[str, tuple[str, Tone | None]]] = {
    "better": ("Better", "good"),
    "worse": ("Worse", "bad"),
    "same": ("No difference", "busy"),
    "unclear": ("Not clear yet", None),
    "nothing": ("Too little to say", None),
}
STATE_TONES: Final = {"draft": "off", "running": "good", "stopped": "busy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmShown:
    """sets: what it does otherwise than the route. number: for its colour; 0 is the control."""

    line: ArmLine
    number: int
    sets: str
    share: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectShown:
    """A row of the table: an arm in one metric."""

    arm: str
    number: int
    value: str
    control: str
    effect: str
    interval: str
    p_value: str
    word: str
    tone: Tone | None
    said: str
    is_reduced: bool
    drawn: Whisker


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricShown:
    """key: by which the address of a page names it."""

    key: str
    label: str
    says: str
    role: str
    better: str
    tolerance: str
    rows: tuple[EffectShown, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentShown:
    label: str
    n_subjects: int
    rows: tuple[EffectShown, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsShown:
    """chosen: the metric of the plot. reach: what the ends of drawn intervals stand for, by the
    metric that decides; wider ones end there. progress: subjects of those that are planned, in
    percent, 100 at most."""

    results: ExperimentResults
    arms: tuple[ArmShown, ...]
    metrics: tuple[MetricShown, ...]
    segments: tuple[SegmentShown, ...]
    chosen: MetricShown | None
    effects: Plot
    exposure: Plot
    reach: str
    segment_reach: str
    progress: int
    detectable: str
    days: str


def results_shown(
    results: ExperimentResults, *, sets: Mapping[str, str], chosen: str
) -> ResultsShown:
    """sets: of each arm by name, what it does otherwise. chosen: the key of a metric, else the one
    that decides is drawn."""
    numbers = {arm.name: number for number, arm in enumerate(results.arms)}
    decides = results.primary
    reach = whisker_reach(
        (effect.low, effect.high)
        for line in ([decides] if decides is not None else results.metrics)
        for effect in line.effects
    )
    metrics = tuple(_metric(line, numbers, reach=reach) for line in results.metrics)
    unit = decides.unit if decides is not None else ""
    segment_reach = whisker_reach(
        (effect.low, effect.high) for line in results.segments for effect in line.effects
    )
    picked = next(
        (each for each in metrics if each.key == chosen),
        next((each for each in metrics if each.role == "primary"), None),
    )
    power = results.power
    return ResultsShown(
        results=results,
        arms=tuple(
            ArmShown(
                line=arm,
                number=numbers[arm.name],
                sets=sets.get(arm.name, ""),
                share=percent(arm.share),
                expected=percent(arm.expected),
            )
            for arm in results.arms
        ),
        metrics=metrics,
        segments=tuple(
            SegmentShown(
                label=line.label,
                n_subjects=line.n_subjects,
                rows=_effects(line.effects, numbers, unit=unit, reach=segment_reach),
            )
            for line in results.segments
        ),
        chosen=picked,
        effects=_effect_plot(results, picked, numbers),
        exposure=_exposure_plot(results, numbers),
        reach=percent(reach),
        segment_reach=percent(segment_reach),
        progress=_progress(power.n_subjects, power.n_planned),
        detectable="" if power.detectable is None else percent(power.detectable),
        days=_days(power.days),
    )


def variant_sets(spec: VariantSpec) -> str:
    """Say what an arm does otherwise than its route."""
    parts = []
    if spec.deployment is not None:
        parts.append(str(spec.deployment))
    if spec.other_route is not None:
        parts.append(f"where {spec.other_route} leads")
    parts += [f"{name}={value}" for name, value in sorted(spec.parameters.items())]
    if spec.prompt_template:
        parts.append("a system message of its own")
    return ", ".join(parts) or "as the route has it"


def value_text(value: float | None, unit: str) -> str:
    """Say a metric's value with its unit."""
    if value is None:
        return "-"
    match unit:
        case "share":
            return percent(value)
        case "ms":
            return f"{value:,.0f} ms" if value >= 100 else f"{value:,.1f} ms"
        case "money":
            return f"{value:.4g} {settings.CURRENCY}"
        case _:
            digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
            return f"{value:,.{digits}f} {unit}".rstrip()


def _metric(line: MetricLine, numbers: Mapping[str, int], *, reach: float) -> MetricShown:
    return MetricShown(
        key=f"{line.key}/{line.role}",
        label=line.label,
        says=line.says,
        role=line.role,
        better=line.better,
        tolerance=percent(line.tolerance) if line.role == "guardrail" else "",
        rows=_effects(line.effects, numbers, unit=line.unit, reach=reach),
    )


def _effects(
    effects: Sequence[Effect], numbers: Mapping[str, int], *, unit: str, reach: float
) -> tuple[EffectShown, ...]:
    return tuple(_effect(each, numbers, unit=unit, reach=reach) for each in effects)


def _effect(each: Effect, numbers: Mapping[str, int], *, unit: str, reach: float) -> EffectShown:
    word, tone = _WORDS[each.word]
    is_known = each.low is not None and each.high is not None
    return EffectShown(
        arm=each.arm,
        number=numbers.get(each.arm, 0),
        value=value_text(each.value, unit),
        control=value_text(each.control, unit),
        effect=signed(each.effect),
        interval=f"{signed(each.low)} to {signed(each.high)}" if is_known else "-",
        p_value=_p_value(each.p_value),
        word=word,
        tone=tone,
        said=each.said,
        is_reduced=each.is_reduced,
        drawn=whisker(value=each.effect, low=each.low, high=each.high, reach=reach),
    )


def _effect_plot(
    results: ExperimentResults, picked: MetricShown | None, numbers: Mapping[str, int]
) -> Plot:
    if picked is None:
        return effect_plot("", [])
    lines = []
    for row in picked.rows:
        bands = []
        for point in results.series:
            known = point.effects.get(picked.key, {}).get(row.arm)
            if known is not None:
                bands.append(Band(at=point.at, value=known.effect, low=known.low, high=known.high))
        lines.append((row.arm, row.number, row.effect, bands))
    return effect_plot(picked.label, lines)


def _exposure_plot(results: ExperimentResults, numbers: Mapping[str, int]) -> Plot:
    return count_plot(
        "Subjects",
        [
            (
                arm.name,
                numbers[arm.name],
                [(point.at, float(point.n_subjects.get(arm.name, 0))) for point in results.series],
            )
            for arm in results.arms
        ],
    )


def _progress(n_subjects: int, n_planned: int | None) -> int:
    return min(round(100 * n_subjects / n_planned), 100) if n_planned else 0


def _p_value(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _days(days: float | None) -> str:
    if not days:
        return ""
    return f"{days:,.1f} days" if days < 10 else f"{days:,.0f} days"


def list_verdict(experiment: Experiment, look: Any) -> str:
    """Say in a few words how one of a list stands. look: what the last look at it found. The
    experiment comes with its winner and its variants."""
    if experiment.state == Experiment.State.DRAFT:
        return "Not started"
    if experiment.state == Experiment.State.STOPPED:
        won = f"{experiment.winner} won: " if experiment.winner is not None else ""
        return f"{won}{experiment.stopped_because}"
    found = (look or {}).get("effects", {})
    effects: dict[str, Any] = next(
        (arms for key, arms in found.items() if key.endswith("/primary")), {}
    )
    names = {str(each.pk): each.name for each in experiment.variants.all()}
    said = [
        f"{names[pk]} {signed(_read(low))} to {signed(_read(high))}"
        for pk, (effect, low, high, _) in effects.items()
        if pk in names and effect is not None
    ]
    return ", ".join(said) or "Too little to say"


def looked_subjects(look: Any) -> str:
    """Return how many subjects there were at the last look."""
    n_subjects = (look or {}).get("subjects", {})
    return f"{sum(n_subjects.values()):,}" if n_subjects else "-"


def _read(number: Any) -> float | None:
    """Looks keep what has no bound as a text."""
    return None if number is None else float(number)
