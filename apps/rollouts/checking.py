"""Whether a rollout can start as it is asked for, and what somebody should know before it does."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Final, get_args

from apps.deployments.selectors import replica_endpoints
from apps.rollouts.models import Rollout
from apps.rollouts.splitting import Split, split
from apps.rollouts.types import (
    DEFAULT_GUARDRAILS,
    DEFAULT_STEPS,
    Approval,
    Checked,
    GuardrailSpec,
    Metric,
    StepSpec,
)
from apps.rollouts.wording import LABELS, percent_said
from apps.routing.selectors import are_two_demanded, targets_of
from apps.routing.types import TargetSpec

if TYPE_CHECKING:
    from apps.deployments.models import Deployment
    from apps.routing.models import Route

MOST_STEPS: Final = 20
LEAST_PERCENT: Final = 0.1
MOST_REQUESTS: Final = 10_000_000
MOST_MINUTES: Final = 60 * 24 * 30
MOST_TOLERANCE: Final = 10.0
LEAST_ALPHA: Final = 0.0001
MOST_ALPHA: Final = 0.2
_MOST_OFF: Final = 0.1  # of a step's percent, or of what others get
_OF_EMBEDDINGS: Final = ("error_rate",)  # they have no tokens to wait for, and nothing to rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A rollout as somebody wants it. guardrails: None for the usual ones that there are for what
    the models do. baseline: None for the one deployment with a weight."""

    route: "Route"
    candidate: "Deployment"
    baseline: "Deployment | None" = None
    steps: Sequence[StepSpec] = DEFAULT_STEPS
    guardrails: Sequence[GuardrailSpec] | None = None
    approval: Approval = "automatic"
    needs_second_person: bool = False
    alpha: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """``checked``, and what a start is made of. baseline: None where there are problems with it."""

    checked: Checked
    before: tuple[TargetSpec, ...]
    baseline: "Deployment | None"
    guardrails: tuple[GuardrailSpec, ...]


class _Problems(defaultdict[str, list[str]]):
    def __init__(self) -> None:
        super().__init__(list)

    def note(self, field: str, text: str | None) -> None:
        if text is not None:
            self[field].append(text)


def findings(asked: Asked) -> Findings:
    """Check a rollout that was not started, changing nothing: in five queries at most."""
    problems = _Problems()
    before = tuple(targets_of(asked.route))
    baseline = _baseline(asked, before, problems)
    _route_check(asked.route, problems)
    _candidate_check(asked, baseline, before, problems)
    _steps_check(asked.steps, problems)
    task = asked.candidate.task
    guardrails = _guardrails(asked.guardrails, task=task, problems=problems)
    _numbers_check(asked, problems)
    splits: list[Split] = []
    if baseline is not None and not problems:
        splits = [split_at(each.percent, baseline=baseline, before=before) for each in asked.steps]
        _splits_check(splits, asked.steps, problems)
    checked = Checked(
        problems=dict(problems),
        warnings=() if baseline is None else tuple(_warnings(asked, baseline, splits)),
        baseline_name="" if baseline is None else baseline.name,
        percents=() if problems else tuple(each.percent for each in splits),
        needs_second_person=asked.needs_second_person or are_two_demanded(asked.route),
    )
    return Findings(checked=checked, before=before, baseline=baseline, guardrails=guardrails)


def ready_ids() -> frozenset[int]:
    """Return the deployments that have a replica which takes requests."""
    return frozenset(each.deployment_id for each in replica_endpoints())


def split_at(percent: float, *, baseline: "Deployment", before: Iterable[TargetSpec]) -> Split:
    weights = {each.deployment.pk: each.weight for each in before}
    return split(percent, baseline=weights.pop(baseline.pk), others=weights)


def _baseline(
    asked: Asked, before: Sequence[TargetSpec], problems: _Problems
) -> "Deployment | None":
    weighted = [each.deployment for each in before if each.weight > 0]
    if asked.baseline is not None:
        if asked.baseline in weighted:
            return asked.baseline
        problems.note("baseline", f"{asked.baseline} gets no share of this route.")
    elif len(weighted) == 1:
        return weighted[0]
    elif not weighted:
        problems.note("route", "No deployment of it gets any request.")
    else:
        names = ", ".join(sorted(map(str, weighted)))
        problems.note("baseline", f"Say which one it is to take the place of: {names}.")
    return None


def _route_check(route: "Route", problems: _Problems) -> None:
    if not route.is_active:
        problems.note("route", "It is off.")
    if is_open := Rollout.objects.filter(route=route, state__in=Rollout.OPEN).first():
        problems.note("route", f"Rollout {is_open.pk} of this route has not ended.")
    elif route.held_by:
        problems.note("route", f"It is held by {route.held_by}.")


def _candidate_check(
    asked: Asked,
    baseline: "Deployment | None",
    before: Sequence[TargetSpec],
    problems: _Problems,
) -> None:
    candidate = asked.candidate
    if any(each.deployment == candidate and each.weight > 0 for each in before):
        problems.note("candidate", f"{candidate} gets a share of this route already.")
    if baseline is not None and baseline.task != candidate.task:
        problems.note("candidate", f"{candidate} does something else than {baseline}.")
    if candidate.pk not in ready_ids():
        problems.note("candidate", f"{candidate} has no ready replica.")


def _steps_check(steps: Sequence[StepSpec], problems: _Problems) -> None:
    if not 1 <= len(steps) <= MOST_STEPS:
        problems.note("steps", f"Give 1 to {MOST_STEPS} steps.")
        return
    for place, step in enumerate(steps, 1):
        problems.note("steps", _step_problem(place, step))
    percents = [step.percent for step in steps]
    if any(after <= before for before, after in pairwise(percents)):
        problems.note("steps", "Each step gives more than the one before.")
    if percents[-1] != 100:
        problems.note("steps", "The last step gives 100 %.")


def _step_problem(place: int, step: StepSpec) -> str | None:
    if not LEAST_PERCENT <= step.percent <= 100:
        return f"Step {place}: a share is from {LEAST_PERCENT:g} to 100 %."
    if not 0 <= step.min_requests <= MOST_REQUESTS:
        return f"Step {place}: the least number of requests is from 0 to {MOST_REQUESTS:,}."
    if not 0 <= step.min_minutes <= MOST_MINUTES:
        return f"Step {place}: the least time is from 0 to {MOST_MINUTES:,} minutes."
    return None


def _guardrails(
    asked: Sequence[GuardrailSpec] | None, *, task: str, problems: _Problems
) -> tuple[GuardrailSpec, ...]:
    known = get_args(Metric) if task == "generate" else _OF_EMBEDDINGS
    if asked is None:
        return tuple(each for each in DEFAULT_GUARDRAILS if each.metric in known)
    seen: set[str] = set()
    for each in asked:
        if each.metric not in known:
            problems.note("guardrails", f"There is no {each.metric!r} here: {', '.join(known)}.")
        elif each.metric in seen:
            problems.note("guardrails", f"{LABELS[each.metric]}: given twice.")
        elif not (isfinite(each.tolerance) and 0 <= each.tolerance <= MOST_TOLERANCE):
            text = f"a tolerance is from 0 to {MOST_TOLERANCE:g}; 0.01 is 1 %."
            problems.note("guardrails", f"{LABELS[each.metric]}: {text}")
        seen.add(each.metric)
    return tuple(asked)


def _numbers_check(asked: Asked, problems: _Problems) -> None:
    if not LEAST_ALPHA <= asked.alpha <= MOST_ALPHA:
        problems.note("alpha", f"From {LEAST_ALPHA:g} to {MOST_ALPHA:g}.")
    if asked.approval not in get_args(Approval):
        problems.note("approval", f"One of {', '.join(get_args(Approval))}.")


def _splits_check(splits: Sequence[Split], steps: Sequence[StepSpec], problems: _Problems) -> None:
    for got, wanted in zip(splits, steps, strict=True):
        if max(got.off, got.others_off) > _MOST_OFF:
            problems.note(
                "steps",
                f"{percent_said(wanted.percent)} cannot be given beside the weights of the other "
                f"deployments: it would be {got.percent:.3g} %. Make the first step larger, or "
                "the old version's weight.",
            )


def _warnings(asked: Asked, baseline: "Deployment", splits: Sequence[Split]) -> Iterable[str]:
    old, new = baseline.context_length, asked.candidate.context_length
    if new < old:
        yield (
            f"{asked.candidate} takes {new:,} tokens of context, {baseline} {old:,}: from the "
            f"first step on the route takes no more than {new:,}."
        )
    if asked.guardrails is not None and not asked.guardrails:
        yield "No guardrail: it is rolled back only where the new version has no ready replica."
    for got, wanted in zip(splits, asked.steps, strict=False):
        if got.off > 0.01:
            yield f"{percent_said(wanted.percent)} will be {got.percent:.3g} %: weights are whole."
