"""Looks as their rows keep them, and as the plot over time reads them."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from apps.experiments.judging import Ground
from apps.experiments.mismatching import mismatch_of
from apps.experiments.models import Experiment, Look, Variant
from apps.experiments.results import MetricLine, SeriesEffect, SeriesPoint
from apps.experiments.totals import n_requests_of, n_subjects_of

MOST_LOOKS: Final = 400  # of one experiment


def look_said(ground: Ground, lines: Iterable[MetricLine]) -> dict[str, Any]:
    """Return a look as its row keeps it: by ids of variants, as texts."""
    ids = {each.name: str(each.pk) for each in ground.variants}
    return {
        "subjects": {str(each.pk): n_subjects_of(ground, each) for each in ground.variants},
        "requests": {str(each.pk): n_requests_of(ground, each) for each in ground.variants},
        "effects": {
            f"{line.key}/{line.role}": {
                ids[each.arm]: [
                    _number_said(number)
                    for number in (each.effect, each.low, each.high, each.p_value)
                ]
                for each in line.effects
            }
            for line in lines
        },
        "mismatch": mismatch_of(ground).p_value,
    }


def series_of(experiment: Experiment, variants: Iterable[Variant]) -> tuple[SeriesPoint, ...]:
    """Return the looks that were kept, the oldest first, in one query."""
    names = {str(each.pk): each.name for each in variants}
    rows = Look.objects.filter(experiment=experiment).order_by("at")
    return tuple(
        SeriesPoint(
            at=at,
            n_subjects=_named(said["subjects"], names),
            n_requests=_named(said["requests"], names),
            effects={
                key: _named({pk: _effect_read(numbers) for pk, numbers in arms.items()}, names)
                for key, arms in said["effects"].items()
            },
            mismatch=said["mismatch"],
        )
        for at, said in rows.values_list("at", "results")[: MOST_LOOKS + 1]
    )


def _number_said(number: float | None) -> float | str | None:
    """JSON has no infinity."""
    if number is None or abs(number) != float("inf"):
        return number
    return str(number)


def _effect_read(numbers: list[float | str | None]) -> SeriesEffect:
    effect, low, high, p_value = (None if n is None else float(n) for n in numbers)
    return SeriesEffect(effect=effect, low=low, high=high, p_value=p_value)


def _named(by_id: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names[pk]: value for pk, value in by_id.items() if pk in names}
