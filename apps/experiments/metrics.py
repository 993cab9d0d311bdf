"""What experiments are judged by: how a request, or something said of it, adds to a metric.

Everything is a whole number: microseconds, micro-cost, counts, logarithms and reported values in
millionths. So the sum over a subject's requests, and the moments over subjects, are the same to the
last digit in whatever order they were counted.

Each row of the ledger is one try. A request is its first row; what was tried again elsewhere stays
in its arm (intention to treat) and adds what it cost, and its answer. What its client aborted is a
request and nothing else: nobody knows how it would have ended.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log
from typing import Any, Final, Literal

from apps.core.ids import is_first_attempt
from apps.statistics.comparing import Kind

Better = Literal["higher", "lower"]
Unit = Literal["ms", "tokens", "money", "requests", "share", ""]
Pair = tuple[int, int]  # numerator, denominator

MICRO: Final = 1_000_000
REQUESTS: Final = "requests"
THUMBS: Final = "thumbs_up_rate"
FEEDBACK_NAME: Final = "feedback"  # as apps.feedback names the events of thumbs
EVENT_PREFIX: Final = "event:"
SUM_PREFIX: Final = "sum:"
JUDGED_PREFIX: Final = "judge:"  # as apps.feedback names the events of judges
MAX_EVENT_NAME_CHARS: Final = 64
# Numbers of the ledger's that say how an answer was.
_FILTERED: Final = "content_filter"
_EMPTY_TOKENS: Final = 1


class UnknownMetric(ValueError):
    """There is no metric by that key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """kind: a rate (numerator of denominator), a mean, or a mean of logarithms, which is shown as a
    geometric mean. better: unless an experiment says otherwise. scale: how much of the numbers is
    one of the unit. is_per_subject: each subject is one of the denominator, whatever it did.
    of_request: what a row of the ledger adds; of_event: whether values that are told add, and by
    what name.
    """

    key: str
    label: str
    unit: Unit
    kind: Kind
    better: Better
    says: str
    scale: float = 1.0
    is_per_subject: bool = False
    of_request: Callable[[Any], Pair | None] | None = None
    event_name: str = ""

    def value_of_event(self, value: float) -> Pair:
        """Return what a told value adds."""
        if self.kind == "rate":
            return (1 if value > 0 else 0), 1
        return round(value * MICRO), (0 if self.is_per_subject else 1)


def metric_of(key: str) -> Metric:
    """Return a metric by its key: one of the built-in ones, ``event:NAME`` (mean of the values told
    under a name), ``sum:NAME`` (their sum per subject) or ``judge:NAME`` (mean score that a judge
    gave), which is no mean or sum of events by other words. Raises UnknownMetric."""
    if (found := BUILT_IN.get(key)) is not None:
        return found
    if key.startswith(JUDGED_PREFIX) and len(key) > len(JUDGED_PREFIX):
        return _judge_metric(key)
    for prefix, is_sum in ((EVENT_PREFIX, False), (SUM_PREFIX, True)):
        name = key.removeprefix(prefix)
        is_taken = name == FEEDBACK_NAME or name.startswith(JUDGED_PREFIX)
        if name != key and 0 < len(name) <= MAX_EVENT_NAME_CHARS and not is_taken:
            return _event_metric(key, name, is_sum=is_sum)
    raise UnknownMetric(f"There is no metric {key[:80]!r}.")


def metrics_by_key(keys: "list[str] | tuple[str, ...]") -> dict[str, Metric]:
    """Return metrics by their keys, the number of requests always among them."""
    return {key: metric_of(key) for key in dict.fromkeys((REQUESTS, *keys))}


def _event_metric(key: str, name: str, *, is_sum: bool) -> Metric:
    return Metric(
        key=key,
        label=f"{name}, per subject" if is_sum else name,
        unit="",
        kind="mean",
        better="higher",
        says=f"Sum of the values of {name} per subject; 0 without any."
        if is_sum
        else f"Mean of the values told as {name}.",
        scale=MICRO,
        is_per_subject=is_sum,
        event_name=name,
    )


def _judge_metric(key: str) -> Metric:
    name = key.removeprefix(JUDGED_PREFIX)
    return Metric(
        key=key,
        label=f"Score by {name}",
        unit="",
        kind="mean",
        better="higher",
        says=f"Mean over the answers that the judge {name} has scored by its rubric.",
        scale=MICRO,
        event_name=key,
    )


def _is_answer(request: Any) -> bool:
    return bool(request.outcome == "completed")


def _log_us(time_ms: float | None, request: Any) -> Pair | None:
    if time_ms is None or not _is_answer(request):
        return None
    return round(MICRO * log(max(time_ms * 1000.0, 1.0))), 1


def _first(request: Any) -> int:
    return int(is_first_attempt(request.request_id))


def _requests(request: Any) -> Pair:
    return _first(request), 0


def _error(request: Any) -> Pair | None:
    if request.outcome == "aborted" or not _first(request):
        return None
    return int(request.is_failed), 1


def _ttft(request: Any) -> Pair | None:
    return _log_us(request.ttft_ms, request)


def _itl(request: Any) -> Pair | None:
    return _log_us(request.itl_ms, request)


def _latency(request: Any) -> Pair | None:
    return _log_us(request.total_ms, request)


def _length(request: Any) -> Pair | None:
    return (request.n_completion_tokens, 1) if _is_answer(request) else None


def _cost(request: Any) -> Pair | None:
    """Each try costs; an aborted one would make an arm cheap that people leave."""
    if request.outcome == "aborted":
        return None
    return request.cost_micro, _first(request)


def _empty(request: Any) -> Pair | None:
    if not _is_answer(request):
        return None
    nothing = request.n_completion_tokens <= _EMPTY_TOKENS or request.finish_reason == _FILTERED
    return int(nothing), 1


_ALL: Final = (
    Metric(
        key=REQUESTS, label="Requests per subject", unit="requests", kind="mean", better="higher",
        says="How often a subject comes.", is_per_subject=True, of_request=_requests,
    ),
    Metric(
        key="error_rate", label="Error rate", unit="share", kind="rate", better="lower",
        says="Requests whose first try failed or was interrupted, of those not aborted.",
        of_request=_error,
    ),
    Metric(
        key="ttft", label="Time to first token", unit="ms", kind="log_mean", better="lower",
        says="Geometric mean over answers.", scale=1000.0, of_request=_ttft,
    ),
    Metric(
        key="itl", label="Time between tokens", unit="ms", kind="log_mean", better="lower",
        says="Geometric mean over answers of two tokens or more.", scale=1000.0, of_request=_itl,
    ),
    Metric(
        key="latency", label="Time of the whole answer", unit="ms", kind="log_mean",
        better="lower", says="Geometric mean over answers.", scale=1000.0, of_request=_latency,
    ),
    Metric(
        key="completion_tokens", label="Length of answers", unit="tokens", kind="mean",
        better="higher", says="Mean tokens of an answer.", of_request=_length,
    ),
    Metric(
        key="cost", label="Cost per request", unit="money", kind="mean", better="lower",
        says="All tries of a request together, without aborted ones.", scale=MICRO,
        of_request=_cost,
    ),
    Metric(
        key="empty_rate", label="Empty or refused answers", unit="share", kind="rate",
        better="lower", says="Answers of at most one token, or withheld by a filter.",
        of_request=_empty,
    ),
    Metric(
        key=THUMBS, label="Thumbs up", unit="share", kind="rate", better="higher",
        says="Of the answers that somebody judged.", event_name=FEEDBACK_NAME,
    ),
)  # fmt: skip
BUILT_IN: Final[Mapping[str, Metric]] = {metric.key: metric for metric in _ALL}
