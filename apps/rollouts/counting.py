"""What a request says of the side that answered it. Pure."""

from collections.abc import Iterable
from math import log
from typing import Final

from apps.feedback.types import ObservedEvent
from apps.metering.types import ObservedRequest, Outcome
from apps.rollouts.tallies import NOTHING, Tally
from apps.rollouts.types import Metric
from apps.statistics.moments import Moments

_EMPTY_TOKENS: Final = 1
_REFUSED: Final = "content_filter"
_LEAST_MS: Final = 0.001


def arm(rollout_id: int, step: int, side: str) -> str:
    """Return what the ledger says of the requests of one side (``baseline`` or ``candidate``)."""
    return f"r{rollout_id}.{step}.{side[0]}"


def arm_read(text: str) -> tuple[int, int, str] | None:
    """Return (rollout, step, side) of what ``arm`` made; None of anything else."""
    rollout, _, rest = text.partition(".")
    step, _, letter = rest.partition(".")
    side = {"b": "baseline", "c": "candidate"}.get(letter)
    if side is None or rollout[:1] != "r" or not (rollout[1:].isdecimal() and step.isdecimal()):
        return None
    return int(rollout[1:]), int(step), side


def tallied(requests: Iterable[ObservedRequest]) -> Tally:
    """Return the sums of some requests of one side of one step."""
    n_requests = n_failed = 0
    sums: dict[str, Moments] = {}
    for request in requests:
        n_requests += 1
        n_failed += request.is_failed
        for metric, value in said_by(request).items():
            sums[metric] = sums.get(metric, NOTHING) + Moments.of(value, 1)
    return Tally(n_requests=n_requests, n_failed=n_failed, sums=sums)


def ratings_tallied(events: Iterable[ObservedEvent]) -> Tally:
    """Return the sums of some ratings of one side of one step. A change of mind takes out what was
    counted before."""
    moments = NOTHING
    for event in events:
        moments = moments + Moments.of(_is_down(event.value), 1)
        if event.previous is not None:
            moments = moments - Moments.of(_is_down(event.previous), 1)
    return Tally(sums={"thumbs_down_rate": moments})


def _is_down(value: float) -> int:
    return int(value < 0.5)


def counts(request: ObservedRequest) -> bool:
    """Return whether a request tells of the side that it was drawn for: one that went elsewhere
    first tells more of the other."""
    return request.attempt == 1 and not request.is_fallback


def said_by(request: ObservedRequest) -> dict[Metric, int]:
    """Return metric → value as sums have it. A client that left says nothing; what a failed request
    took is no time of an answer."""
    if request.outcome == Outcome.ABORTED:
        return {}
    if request.is_failed:
        return {"error_rate": 1}
    is_empty = request.n_completion_tokens <= _EMPTY_TOKENS or request.finish_reason == _REFUSED
    said: dict[Metric, int] = {"error_rate": 0, "empty_rate": int(is_empty)}
    if request.ttft_ms is not None:
        said["ttft"] = log_micro(request.ttft_ms)
    if (itl_ms := request.itl_ms) is not None:
        said["itl"] = log_micro(itl_ms)
    return said


def log_micro(ms: float) -> int:
    """Return a time as sums of logs have it: whole numbers, so that sums are exact."""
    return round(1e6 * log(max(ms, _LEAST_MS) * 1000))
