"""Settled rows for those who compare: each is handed out once, in the transaction in which it is
counted, as ``rollups`` has it."""

from datetime import datetime
from typing import Final, Literal

from apps.metering.models import UsageRecord
from apps.metering.types import ObservedRequest, Outcome, Whose

Comparison = Literal["experiment", "rollout"]
_FLAGS: Final = {"experiment": "is_in_experiments", "rollout": "is_in_rollout"}
_NAMES: Final = (
    "request_id", "tenant_id", "api_token_id", "end_user", "door", "route_name", "deployment_id",
    "model_version_id", "attempt", "is_fallback", "finish_reason", "n_prompt_tokens",
    "n_completion_tokens", "cost_micro", "ttft_ms", "total_ms", "created_at",
)  # fmt: skip


def rows_take(comparison: Comparison, *, limit: int) -> list[ObservedRequest]:
    """Return the oldest settled rows that were not handed out yet, and mark them."""
    arm, flag = f"{comparison}_arm", _FLAGS[comparison]
    waiting = UsageRecord.objects.filter(
        state=UsageRecord.State.SETTLED, **{flag: False, f"{arm}__gt": ""}
    )
    rows = list(waiting.order_by("id").select_for_update()[:limit])
    UsageRecord.objects.filter(pk__in=[row.pk for row in rows]).update(**{flag: True})
    return [observed(row, comparison) for row in rows]


def observed(row: UsageRecord, comparison: Comparison) -> ObservedRequest:
    return ObservedRequest(
        arm=getattr(row, f"{comparison}_arm"),
        outcome=Outcome(row.outcome),
        **{name: getattr(row, name) for name in _NAMES},
    )


def rows_before(
    *, route_name: str, since: datetime, until: datetime, whose: Whose, limit: int
) -> list[ObservedRequest]:
    """Return settled rows of somebody on a route from ``since`` to before ``until``, the newest
    first."""
    rows = UsageRecord.objects.filter(
        tenant_id__in=whose.tenant_ids,
        state=UsageRecord.State.SETTLED,
        is_from_cache=False,
        route_name=route_name,
        created_at__gte=since,
        created_at__lt=until,
    )
    if whose.end_users:
        # The first condition is that of the index.
        rows = rows.filter(end_user__gt="", end_user__in=whose.end_users)
    else:
        rows = rows.filter(api_token_id__in=whose.api_token_ids)
    found = rows.order_by("-created_at").values_list("outcome", *_NAMES)[:limit]
    return [
        ObservedRequest(arm="", outcome=Outcome(outcome), **dict(zip(_NAMES, values, strict=True)))
        for outcome, *values in found
    ]
