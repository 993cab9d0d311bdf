"""What an experiment's totals must be: the ledger and the events added up the plain way. It shares
no code with what counts; the only thing it takes from there is how rows name arms."""

import hashlib
from collections import defaultdict
from datetime import timedelta
from math import log
from typing import Any

from apps.feedback.models import MetricEvent
from apps.metering.models import UsageRecord
from tests.rows import all_of

Totals = dict[tuple[str, str, str], list[int]]


def recount(made: Any) -> Totals:
    """Arm, metric and segment → the 15 sums over its subjects, those that are all 0 left out."""
    names = {each.pk: each.name for each in made.variants.all()}
    keys = dict.fromkeys(["requests", *(each.metric for each in made.metrics.all())])
    requests: dict[str, list[tuple[int, Any]]] = defaultdict(list)
    for row in all_of(UsageRecord).filter(state="settled").exclude(experiment_arm=""):
        for part in row.experiment_arm.split(","):
            experiment, variant, subject = part.split(".")
            if experiment == f"e{made.pk}":
                requests[subject].append((int(variant[1:]), row))
    events: dict[str, list[Any]] = defaultdict(list)
    for event in all_of(MetricEvent).all():
        for subject in _subjects(made, event, requests):
            events[subject].append(event)
    found: Totals = defaultdict(lambda: [0] * 15)
    for subject, rows in requests.items():
        first_variant, first = min(
            rows, key=lambda each: (each[1].created_at, each[1].door, each[0])
        )
        arm = names[first_variant]
        if len({variant for variant, _ in rows}) > 1:
            _sum(found[arm, "crossed", ""], 1, 1, 0, 0)
            continue
        past = _past(made, first)
        for key in keys:
            y, x = _metric(key, [row for _, row in rows], events[subject])
            v, u = (0, 0) if past is None else _metric(key, past, [])
            if past is None and (key == "requests" or key.startswith("sum:")):
                u = 0
            if x:
                for segment in ("", f"tenant:{first.tenant_id}", f"door:{first.door}"):
                    _sum(found[arm, key, segment], y, x, v, u)
    return {key: sums for key, sums in found.items() if any(sums)}


def _subjects(made: Any, event: Any, requests: dict[str, Any]) -> list[str]:
    if event.request_id:
        parts = [part.split(".") for part in event.experiment_arm.split(",") if part]
        return [subject for experiment, _, subject in parts if experiment == f"e{made.pk}"]
    if made.subject != "end_user":
        return []
    subject = hashlib.blake2b(
        f"end_user\0{event.tenant_id}\0{event.end_user}".encode(),
        digest_size=8,
        key=made.salt.encode(),
    ).hexdigest()
    if subject not in requests:
        return []
    began = min(row.created_at for _, row in requests[subject])
    ended = made.stopped_at
    is_within = event.created_at >= began and (ended is None or event.created_at <= ended)
    return [subject] if is_within else []


def _past(made: Any, first: Any) -> list[Any] | None:
    if not made.pre_period_days:
        return None
    return list(
        all_of(UsageRecord).filter(
            state="settled",
            tenant_id=first.tenant_id,
            end_user=first.end_user,
            route_name=made.route.name,
            created_at__gte=made.started_at - timedelta(days=made.pre_period_days),
            created_at__lt=made.started_at,
        )
    )


def _metric(key: str, rows: list[Any], events: list[Any]) -> tuple[int, int]:
    first = [row for row in rows if not row.request_id.endswith(("-2", "-3", "-4"))]
    answers = [row for row in rows if row.outcome == "completed"]
    kept = [row for row in first if row.outcome != "aborted"]
    match key:
        case "requests":
            return len(first), 1
        case "error_rate":
            return sum(row.outcome in ("failed", "interrupted") for row in kept), len(kept)
        case "ttft":
            return _logs([row.ttft_ms for row in answers])
        case "latency":
            return _logs([row.total_ms for row in answers])
        case "itl":
            timed = [r for r in answers if r.n_completion_tokens > 1 and r.ttft_ms is not None]
            return _logs(
                [
                    max(row.total_ms - row.ttft_ms, 0.0) / (row.n_completion_tokens - 1)
                    for row in timed
                ]
            )
        case "completion_tokens":
            return sum(row.n_completion_tokens for row in answers), len(answers)
        case "cost":
            return sum(row.cost_micro for row in rows if row.outcome != "aborted"), len(kept)
        case "empty_rate":
            empty = [
                row
                for row in answers
                if row.n_completion_tokens < 2 or row.finish_reason == "content_filter"
            ]
            return len(empty), len(answers)
        case "thumbs_up_rate":
            thumbs = [event.value for event in events if event.name == "feedback"]
            return sum(value == 1 for value in thumbs), len(thumbs)
    kind, _, name = key.partition(":")
    told = [round(event.value * 1_000_000) for event in events if event.name == name]
    return sum(told), (1 if kind == "sum" else len(told))


def _logs(times_ms: list[float | None]) -> tuple[int, int]:
    known = [time_ms for time_ms in times_ms if time_ms is not None]
    return sum(round(1_000_000 * log(max(each * 1000, 1))) for each in known), len(known)


def _sum(sums: list[int], y: int, x: int, v: int, u: int) -> None:
    unit = (1, y, x, v, u, y*y, y*x, y*v, y*u, x*x, x*v, x*u, v*v, v*u, u*u)  # fmt: skip
    for place, number in enumerate(unit):
        sums[place] += number
