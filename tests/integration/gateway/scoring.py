"""Answers that wait for a judge of another tenant, and what has become of them."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from apps.core.hop import database_hop
from apps.deployments.models import Deployment
from apps.gateway import judging
from apps.gateway.types import JUDGE
from apps.judging.models import AnswerSample, Judge
from apps.judging.samples import samples_keep
from apps.judging.types import JudgedText, Turn
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken
from tests.factories import (
    ApiTokenFactory,
    PlanFactory,
    RouteFactory,
    TenantFactory,
    UsageRecordFactory,
)
from tests.integration.gateway.judged import judge
from tests.rows import all_of

SCORER = "lab/judge"
TEXT = JudgedText(asked=(Turn("user", "What is two and two?"),), answer="Four.")


@pytest.fixture
def judges_token(route: str) -> ApiToken:
    """Of a tenant that runs the judges, and pays for them; its route leads to the same engine."""
    RouteFactory(name=SCORER, deployment=Deployment.objects.get(name="tiny"))
    return ApiTokenFactory(tenant=TenantFactory(plan=PlanFactory()))


def made(judges_token: ApiToken, name: str = "helpful", **fields: Any) -> Judge:
    return judge(name, **{"route": SCORER, "api_token": judges_token, **fields})


def kept(judge: Judge, *, number: int = 1, text: JudgedText = TEXT, **fields: Any) -> None:
    """An answer that waits, and its row in the ledger."""
    tenant = TenantFactory(allows_judging=True)
    row = UsageRecordFactory(tenant_id=tenant.pk, request_id=f"chatcmpl-{number}", **fields)
    assert samples_keep(
        judge_ids=[judge.pk],
        tenant_id=tenant.pk,
        request_id=row.request_id,
        end_user="joe",
        text=text,
    )


async def run() -> None:
    await judging.judge(is_stopping=lambda: False)


async def run_until_none_waits() -> None:
    """A slice may be too short on a busy machine; and what the model spoils is tried again."""
    for _ in range(20):
        await run()
        if not await database_hop(all_of(AnswerSample).count):
            return
        await database_hop(due)


async def state(name: str = "helpful") -> tuple[int, int, int]:
    """Of a judge: how many wait, are scored, and are without a score."""

    def found() -> tuple[int, int, int]:
        row = Judge.objects.get(name=name)
        return all_of(AnswerSample).filter(judge=row).count(), row.n_scored, row.n_failed

    return await database_hop(found)


async def problem(name: str = "helpful") -> str:
    return (await database_hop(Judge.objects.get, name=name)).last_problem


async def waits() -> tuple[int, float]:
    """Of the one that waits: its attempts, and for how long yet."""
    row = await database_hop(all_of(AnswerSample).get)
    return row.attempt, (row.due_at - timezone.now()).total_seconds()


async def asked() -> list[UsageRecord]:
    """What judges have asked, by the ledger."""
    return await database_hop(lambda: list(all_of(UsageRecord).filter(door=JUDGE).order_by("id")))


def due() -> None:
    all_of(AnswerSample).update(due_at=timezone.now() - timedelta(seconds=1))
