"""The replay refuses what the real budgets refuse: the same requests, through the same meters that
a door's requests move."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from apps.core.limits import Limits
from apps.metering import budgets, meters
from apps.metering.exceptions import LimitExceeded, TooManyConcurrent
from apps.metering.models import Meter
from apps.metering.replay import PastRequest, replay
from apps.metering.types import Grant, Reservation, Scope
from apps.rbac.types import Principal

pytestmark = pytest.mark.django_db

KEY = "tenant:1"
BEFORE_MIDNIGHT = datetime(2026, 11, 25, 23, 58, tzinfo=UTC)
PRINCIPAL = Principal(tenant_id=1, tenant_slug="t", cache_salt="s", label="l", limits=Limits())


def some(random: Random, n: int) -> list[PastRequest]:
    """Requests of four minutes around a midnight."""
    found = []
    for _ in range(n):
        at = BEFORE_MIDNIGHT + timedelta(seconds=random.randrange(2_400) / 10)
        n_prompt, n_answer = random.randrange(20), random.randrange(1, 20)
        found.append(
            PastRequest(
                at=at,
                ended_at=at + timedelta(seconds=random.randrange(300) / 10 + 0.01),
                door=random.choice(["rest", "batch"]),
                route_name="m",
                n_prompt_tokens=n_prompt,
                n_reserved_tokens=n_prompt + n_answer,
                n_charged_tokens=n_prompt + random.randrange(n_answer + 1),
            )
        )
    return sorted(found, key=lambda each: each.at)


def reserve(request: PastRequest, limits: Limits) -> Grant:
    reservation = Reservation(
        request_id="r",
        principal=PRINCIPAL,
        door=request.door,
        endpoint="chat.completions",
        route_name="m",
        deployment_id=1,
        model_version_id=1,
        engine_name="m-0",
        engine_epoch=1,
        n_prompt_tokens=request.n_prompt_tokens,
        n_reserved_tokens=request.n_reserved_tokens,
        n_least_tokens=request.n_least_tokens,
        scopes=(Scope(key=KEY, said="You", limits=limits),),
        is_open=request.is_hurried,
        lifetime_s=60.0,
    )
    return budgets.reserve(reservation, now=request.at)


def name_of(error: LimitExceeded) -> str:
    if isinstance(error, TooManyConcurrent):
        return "max_concurrent_requests"
    return "tokens_per_month" if "this month" in error.message else "tokens_per_day"


def for_real(requests: list[PastRequest], limits: Limits) -> Counter[str]:
    counts: Counter[str] = Counter()
    running: list[tuple[PastRequest, Grant]] = []
    for request in requests:
        for each in sorted(running, key=lambda pair: pair[0].ended_at or pair[0].at):
            one, grant = each
            if one.ended_at is not None and one.ended_at < request.at:
                n_used = min(one.n_charged_tokens, grant.n_tokens)
                meters.give_back(meter_ids=grant.meter_ids, n_held=grant.n_tokens, n_used=n_used)
                running.remove(each)
        try:
            grant = reserve(request, limits)
        except LimitExceeded as error:
            counts[name_of(error)] += 1
        else:
            running.append((request, grant))
            counts["shortened"] += request.n_charged_tokens > grant.n_tokens
    return +counts


@pytest.mark.parametrize(
    ("seed", "limits"),
    [
        (1, Limits(tokens_per_day=400)),
        (2, Limits(tokens_per_day=350, tokens_per_month=700, max_concurrent_requests=3)),
        (3, Limits(tokens_per_month=500, max_concurrent_requests=2)),
        (4, Limits(tokens_per_day=300, tokens_per_month=300)),
    ],
)
def test_it_refuses_what_they_refuse(seed: int, limits: Limits) -> None:
    requests = some(Random(seed), 60)
    Meter.objects.create(scope=KEY, period="2026-11", n_used=100)
    found = replay(requests, limits=limits, key=KEY, used_before={"2026-11": 100})
    counts = Counter({each.limit: each.n for each in found.refused})
    counts["shortened"] = found.n_shortened
    real = for_real(requests, limits)
    assert +counts == real
    assert sum(real.values()) > 3
