"""How a rollout is told, in plain words with figures."""

from typing import Final

from apps.rollouts.judging import Judged
from apps.rollouts.tallies import RATES
from apps.rollouts.types import GuardrailLine, Metric, Tone

LABELS: Final[dict[Metric, str]] = {
    "error_rate": "Failed requests",
    "ttft": "Time to the first token",
    "itl": "Time between tokens",
    "empty_rate": "Empty or refused answers",
    "thumbs_down_rate": "Thumbs down",
}
_DID: Final[dict[Metric, str]] = {
    "error_rate": "requests of {name} failed",
    "empty_rate": "answers of {name} were empty or refused",
    "thumbs_down_rate": "ratings of {name} were thumbs down",
}
_RATE: Final[dict[Metric, str]] = {
    "error_rate": "failure rate",
    "empty_rate": "rate of empty or refused answers",
    "thumbs_down_rate": "rate of thumbs down",
}
_TIME: Final[dict[Metric, str]] = {
    "ttft": "The time to the first token", "itl": "The time between tokens",
}  # fmt: skip


def percent_said(percent: float) -> str:
    return f"{percent:g} %"


def breach_said(verdict: Judged, *, percent: float, candidate: str) -> str:
    """Say why a rollout was rolled back: ``Rolled back at 1 %: 23 of 31 requests of new failed (old
    version: 0 of 2,950). The failure rate is at least 41 points worse; 1 was allowed.``"""
    metric, at = verdict.guardrail.metric, f"Rolled back at {percent_said(percent)}"
    low, allowed = verdict.low or 0.0, verdict.guardrail.tolerance
    if metric in RATES:
        did = _DID[metric].format(name=candidate)
        return (
            f"{at}: {verdict.k_candidate:,} of {verdict.n_candidate:,} {did} (old version: "
            f"{verdict.k_baseline:,} of {verdict.n_baseline:,}). The {_RATE[metric]} is at least "
            f"{_points(low)} {_noun(low)} worse; {_points(allowed)} was allowed."
        )
    return (
        f"{at}: {_TIME[metric][0].lower()}{_TIME[metric][1:]} of {candidate} is "
        f"{_ms(verdict.candidate)} over {verdict.n_candidate:,} requests (old version: "
        f"{_ms(verdict.baseline)} over {verdict.n_baseline:,}). It is at least {_relative(low)} "
        f"longer; {_relative(allowed)} was allowed."
    )


def line_of(verdict: Judged) -> GuardrailLine:
    """Return a guardrail as people read it."""
    said, tone = _verdict_said(verdict)
    spec = verdict.guardrail
    return GuardrailLine(
        metric=spec.metric,
        label=LABELS[spec.metric],
        tolerance=spec.tolerance,
        baseline=_value(spec.metric, verdict.baseline),
        candidate=_value(spec.metric, verdict.candidate),
        low=verdict.low,
        high=verdict.high,
        is_breached=verdict.is_breached,
        verdict=said,
        tone=tone,
    )


def _verdict_said(verdict: Judged) -> tuple[str, Tone]:
    is_rate, low, high = verdict.guardrail.metric in RATES, verdict.low, verdict.high
    much = _much_points if is_rate else _relative
    allowed = f"{much(verdict.guardrail.tolerance)} is allowed."
    if verdict.n_candidate == 0:
        return "Nothing to judge yet.", "busy"
    if verdict.n_baseline == 0:
        return "There is nothing of the old version to compare with.", "busy"
    if low is None or high is None:
        return "Too few to say anything yet.", "busy"
    if verdict.is_breached:
        return f"At least {much(low)} worse; {allowed}", "bad"
    if high <= verdict.guardrail.tolerance:
        if high < 0:
            return f"Better by {much(-high)} at least.", "good"
        return f"At most {much(high)} worse; {allowed}", "good"
    if low > 0:
        return f"At least {much(low)} worse, and perhaps more than allowed: {allowed}", "warn"
    return f"No sign of being worse than allowed; not ruled out yet: {allowed}", "busy"


def _value(metric: Metric, value: float | None) -> str | None:
    if value is None:
        return None
    return f"{100 * value:.3g} %" if metric in RATES else _ms(value)


def _ms(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _points(difference: float) -> str:
    points = 100 * difference
    return f"{points:.0f}" if points >= 10 else f"{points:.2g}"


def _noun(difference: float) -> str:
    return "point" if _points(difference) == "1" else "points"


def _much_points(difference: float) -> str:
    return f"{_points(difference)} {_noun(difference)}"


def _relative(part: float) -> str:
    percent = 100 * part
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
