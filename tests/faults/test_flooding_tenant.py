"""A tenant that sends ten times its load moves another one's time to first token by less than two
times. A ratio of times of one run: it wants a machine without other work."""

import asyncio
import contextlib
import math
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.serve import RunningProduct, in_django

pytestmark = pytest.mark.e2e

PHASE_S = 6.0
EVERY_S = 0.25
N_ROUNDS = 3
OVERLOAD = 10

_TENANT = """
import sys
from apps.audit.types import SYSTEM
from apps.rbac.services import api_token_issue
from apps.tenants.selectors import plan_by_slug
from apps.tenants.services import tenant_create
name = sys.argv[1]
tenant = tenant_create(name=name, slug=name, plan=plan_by_slug("enterprise"), actor=SYSTEM)
print(api_token_issue(tenant=tenant, name=name, actor=SYSTEM).secret)
"""


def tenant_secret(product: RunningProduct, name: str) -> str:
    return in_django(product, _TENANT, name).split()[-1]


def ask(product: RunningProduct, text: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": product.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 24,
        "ignore_eos": True,
        "stream": True,
        **fields,
    }


@contextlib.asynccontextmanager
async def client_of(product: RunningProduct, secret: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(
        base_url=product.base_url, headers=headers, timeout=120, limits=limits
    ) as http:
        yield http


async def ttft_s(http: httpx.AsyncClient, body: dict[str, Any]) -> float | None:
    """Return how long the first token took; None where the request was refused."""
    began_s, first_s = time.perf_counter(), None
    async with http.stream("POST", "/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            return None
        async for line in answer.aiter_lines():
            if first_s is None and '"content":"' in line and '"content":""' not in line:
                first_s = time.perf_counter() - began_s
    return first_s


async def load(http: httpx.AsyncClient, product: RunningProduct, *, per_s: float) -> list[Any]:
    """Send requests at a rate, whatever becomes of them, for the length of a phase."""
    n = round(PHASE_S * per_s)
    tasks = []
    for index in range(n):
        body = ask(product, f"Tell me something about the number {index}.")
        tasks.append(asyncio.create_task(ttft_s(http, body)))
        await asyncio.sleep(1 / per_s)
    return await asyncio.gather(*tasks)


def p95(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


@pytest.mark.prove
async def test_a_flood_hardly_moves_another_tenant(product: RunningProduct) -> None:
    calm_p95, flood_p95, refused = [], [], 0
    rate = 1 / EVERY_S
    async with (
        client_of(product, tenant_secret(product, "quiet")) as quiet,
        client_of(product, tenant_secret(product, "loud")) as loud,
    ):
        for _ in range(N_ROUNDS):
            for factor, into in ((1, calm_p95), (OVERLOAD, flood_p95)):
                flood = asyncio.create_task(load(loud, product, per_s=rate * factor))
                found = await load(quiet, product, per_s=rate)
                assert None not in found  # nobody of the quiet tenant's is refused
                into.append(p95([each for each in found if each is not None]))
                refused += sum(each is None for each in await flood)
    ratios = [flood / calm for flood, calm in zip(flood_p95, calm_p95, strict=True)]
    print(
        f"p95 TTFT of the quiet tenant: {[round(1000 * each) for each in calm_p95]} ms calm, "
        f"{[round(1000 * each) for each in flood_p95]} ms beside {OVERLOAD} x the load "
        f"({refused} of it refused): {[round(each, 2) for each in ratios]} x"
    )
    assert statistics.median(ratios) < 2
