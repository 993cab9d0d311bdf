"""An experiment on the route of the gateway's tests whose answers a model judges, and what
waits for it."""

import asyncio
from typing import Any

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.experiments.models import Experiment
from apps.experiments.types import MetricSpec, VariantSpec
from apps.gateway.runtime import GatewayRuntime
from apps.judging.models import AnswerSample, Judge
from apps.judging.sampling import text_unsealed
from apps.judging.services import judge_create
from apps.judging.types import JudgedText
from apps.rbac.models import ApiToken
from apps.routing.models import Route
from apps.tenants.models import Tenant
from tests.factories import ApiTokenFactory
from tests.integration.gateway.conftest import MODEL
from tests.integration.gateway.experimenting import LATENCY, running
from tests.rows import all_of

RUBRIC = "5 is an answer that helps, 1 is one that does not."


def judge(name: str = "helpful", *, route: str = MODEL, **fields: Any) -> Judge:
    """It asks in the name of another tenant's token unless one is given."""
    fields.setdefault("api_token", ApiTokenFactory())
    return judge_create(
        actor=SYSTEM,
        name=name,
        rubric=RUBRIC,
        route=Route.objects.get(name=route),
        **fields,
    )


def allowed(tenant_id: int, *, is_allowed: bool = True) -> None:
    """As the tenant says, without the news of it."""
    Tenant.objects.filter(pk=tenant_id).update(allows_judging=is_allowed)


def judged(
    token: ApiToken, *variants: VariantSpec, judges: tuple[str, ...] = ("helpful",), **fields: Any
) -> Experiment:
    """Start an experiment whose judges exist, of a tenant that allows them to read."""
    allowed(token.tenant_id)
    metrics = [LATENCY, *(MetricSpec(metric=f"judge:{name}", better="higher") for name in judges)]
    return running(*variants, metrics=metrics, **fields)


async def begun(token: ApiToken, *variants: VariantSpec, **fields: Any) -> Experiment:
    """One judge, and an experiment that it judges."""

    def made() -> Experiment:
        judge(
            **{name: fields.pop(name) for name in ("sample_percent", "per_day") if name in fields}
        )
        return judged(token, *variants, **fields)

    return await database_hop(made)


async def all_kept(runtime: GatewayRuntime) -> None:
    """Return once nothing is left to be written after its request."""
    runtime.refusals.close()  # which else wait for more of them
    while runtime._background:
        await asyncio.wait(runtime._background)


def waiting() -> list[tuple[AnswerSample, JudgedText]]:
    rows = all_of(AnswerSample).order_by("id")
    return [(row, text_unsealed(row.sealed)) for row in rows]


async def samples(runtime: GatewayRuntime) -> list[tuple[AnswerSample, JudgedText]]:
    await all_kept(runtime)
    return await database_hop(waiting)
