"""A route with an old and a new deployment, both ready, and what the ledger says of them."""

from dataclasses import dataclass
from typing import Any

from apps.audit.models import AuditEvent
from apps.core.selectors import change_stamps
from apps.deployments.models import Deployment
from apps.metering.models import UsageRecord
from apps.rollouts.models import Rollout, RolloutTally
from apps.rollouts.types import GuardrailSpec, StepSpec
from apps.routing.models import Route, RouteTarget
from tests.factories import DeploymentFactory, ReplicaFactory, RouteFactory, UsageRecordFactory
from tests.rows import all_of

QUICK = (
    StepSpec(percent=10, min_requests=20, min_minutes=0),
    StepSpec(percent=50, min_requests=20, min_minutes=0),
    StepSpec(percent=100, min_requests=0, min_minutes=0),
)
ONLY_ERRORS = (GuardrailSpec(metric="error_rate", tolerance=0.01),)


@dataclass
class Place:
    route: Route
    old: Deployment
    new: Deployment


def place(*, name: str = "chat") -> Place:
    old, new = ready(f"{name}-old"), ready(f"{name}-new")
    return Place(route=RouteFactory(name=name, deployment=old), old=old, new=new)


def ready(name: str, **fields: Any) -> Deployment:
    made: Deployment = DeploymentFactory(name=name, **fields)
    ReplicaFactory(deployment=made, index=0)
    return made


def led(route: Route) -> list[tuple[str, int, int | None, str]]:
    """Return where a route leads: name, weight, place among the fallbacks, arm."""
    rows = RouteTarget.objects.filter(route=route).select_related("deployment").order_by("pk")
    found = [(r.deployment.name, r.weight, r.fallback_order, r.arm) for r in rows]
    return sorted(found, key=lambda each: each[0])


def everything() -> dict[str, Any]:
    """Return all that a rollout may change, so that a test can say that nothing did."""
    return {
        "rollouts": list(Rollout.objects.order_by("pk").values()),
        "tallies": list(RolloutTally.objects.order_by("pk").values()),
        "targets": list(
            RouteTarget.objects.order_by("route_id", "deployment_id").values(
                "route_id", "deployment_id", "weight", "fallback_order", "arm"
            )
        ),
        "held": list(Route.objects.order_by("pk").values_list("pk", "held_by")),
        "events": all_of(AuditEvent).count(),
        "stamps": change_stamps(),
    }


def answered(
    rollout: Rollout, side: str, n: int, *, step: int | None = None, **fields: Any
) -> None:
    """Write settled rows of one side, of its present step unless one is given."""
    step = rollout.step if step is None else step
    arm = f"r{rollout.pk}.{step}.{side[0]}"
    rows = UsageRecordFactory.build_batch(
        n, route_name=rollout.route_name, rollout_arm=arm, **fields
    )
    all_of(UsageRecord).bulk_create(rows)


def failed(rollout: Rollout, side: str, n: int, *, step: int | None = None) -> None:
    answered(
        rollout, side, n, step=step, outcome="failed", finish_reason="", n_completion_tokens=0,
        ttft_ms=None,
    )  # fmt: skip


def uncounted() -> int:
    rows = all_of(UsageRecord).filter(rollout_arm__gt="", is_in_rollout=False)
    return int(rows.count())


def actions() -> list[str]:
    """Return what the trail says of rollouts, the oldest first."""
    rows = all_of(AuditEvent).filter(action__startswith="rollout.").order_by("pk")
    return list(rows.values_list("action", flat=True))
