"""Auto-scaling of real engines: one replica has little to do, a load step takes three, and once it
is over one is enough again. What is judged is what engines recorded of how long requests waited."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.deployments.autoscaling import Pace
from benchmarks.plot import Panel, Phase, timeline
from tests.faults.scaling import Change, Load, in_bins
from tests.furnished import furnished_var
from tests.processes import ROOT
from tests.serve import CHAT_ENGINE, RunningProduct, in_django, running_product
from tests.waiting import wait_until, wait_until_async

pytestmark = [pytest.mark.e2e, pytest.mark.prove, pytest.mark.timeout(3600)]

RESULTS = ROOT / "benchmarks" / "results"
DEPLOYMENT = CHAT_ENGINE.removesuffix("-0")
# Each replica computes two requests at a time, so that six clients fill three of them: there are
# rows for all, however many cores the replicas have to share.
N_ROWS, MOST_REPLICAS, N_TOKENS = 2, 3, 48
N_CLIENTS = N_ROWS * MOST_REPLICAS
TARGET_S = 2.0
FIRST_S, HOLD_S = 30.0, 180.0
REACHED_S = 300.0  # engines load for long where others use the machine
BIN_S = 5.0
SETTLE = """
import sys
from apps.audit.types import SYSTEM
from apps.deployments.models import Deployment
from apps.deployments.services import deployment_update
name, *numbers = sys.argv[1:]
n_rows, most, target_ms = map(int, numbers)
deployment_update(
    deployment=Deployment.objects.get(name=name), actor=SYSTEM, kv_cache_tokens=4096,
    max_sequences=n_rows, min_replicas=1, max_replicas=most, target_wait_ms=target_ms,
)
"""


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProduct]:
    """A product whose model to chat with may have three small replicas."""
    # A busy machine is to make engines slow here, not to have them ended.
    env = {"ENGINE_PING_DEADLINE_S": "60"}
    with running_product(furnished_var(tmp_path_factory, "scaled"), env=env) as product:
        before = product.engine().epoch
        facts = (DEPLOYMENT, N_ROWS, MOST_REPLICAS, int(TARGET_S * 1000))
        in_django(product, SETTLE, *map(str, facts))
        wait_until(
            "the engine with so few rows",
            lambda: product.engine().epoch > before and product.engine().state == "ready",
            timeout_s=REACHED_S,
        )
        wait_until("the server to know it", lambda: is_answering(product), timeout_s=REACHED_S)
        yield product


def is_answering(product: RunningProduct) -> bool:
    response = httpx.post(
        f"{product.base_url}/completions",
        headers={"Authorization": f"Bearer {product.api_token}"},
        json={"model": product.model, "prompt": "The sea", "max_tokens": 1},
        timeout=60,
    )
    return response.status_code == 200


async def run(load: Load) -> list[Phase]:
    """Go through all three phases; return when they were."""

    def has(n_replicas: int) -> bool:
        return load.sights[-1].numbers == (n_replicas, n_replicas)

    edges = [0.0]
    async with load.watched(DEPLOYMENT):
        async with load.clients(1, pause_s=1.0):
            await asyncio.sleep(FIRST_S)
            edges.append(load.now_s())
        async with load.clients(N_CLIENTS):
            await wait_until_async("three replicas", lambda: has(3), timeout_s=REACHED_S)
            edges.append(load.now_s())
            await asyncio.sleep(HOLD_S)
            edges.append(load.now_s())
        async with load.clients(1, pause_s=5.0):
            timeout_s = 6 * Pace().down_after_s
            await wait_until_async("one replica", lambda: has(1), timeout_s=timeout_s)
        edges.append(load.now_s())
    labels = ("1 client", f"{N_CLIENTS} clients", "three replicas", "1 client that pauses")
    return [
        Phase(label=label, begin_s=begin_s, end_s=end_s)
        for label, (begin_s, end_s) in zip(labels, pairwise(edges), strict=True)
    ]


def rounded(facts: Any) -> dict[str, Any]:
    """Return a record with its seconds to a tenth."""
    return {
        name: round(value, 1) if isinstance(value, float) else value
        for name, value in asdict(facts).items()
    }


def keep(load: Load, *, phases: list[Phase], changes: list[Change]) -> None:
    waits = in_bins(load.waits(), width_s=BIN_S)
    rates = in_bins(((each.ended_s, 0.0) for each in load.answers), width_s=BIN_S)
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu_count": os.cpu_count(),
        "target_wait_s": TARGET_S,
        "rows_of_a_replica": N_ROWS,
        "tokens_of_an_answer": N_TOKENS,
        "n_answers": len(load.answers),
        "phases": [rounded(each) for each in phases],
        "changes": [rounded(each) for each in changes],
        "replicas": [
            rounded(now)
            for before, now in pairwise([None, *load.sights])
            if before is None or before.numbers != now.numbers
        ],
        "waits": waits,
        "answers": [{"at_s": each["at_s"], "per_s": each["per_s"]} for each in rates],
    }
    (RESULTS / "autoscaling.json").write_text(json.dumps(facts, indent=1) + "\n")
    (RESULTS / "autoscaling.svg").write_text(picture(facts))


def picture(facts: dict[str, Any]) -> str:
    end_s = facts["phases"][-1]["end_s"]
    replicas = [*facts["replicas"], {**facts["replicas"][-1], "at_s": end_s}]

    def line(points: list[dict[str, float]], name: str) -> list[tuple[float, float]]:
        return [(each["at_s"], each[name]) for each in points]

    return timeline(
        title="Autoscaling between one and three replicas on a load step",
        phases=[Phase(**each) for each in facts["phases"]],
        panels=[
            Panel(
                label="replicas",
                is_stepped=True,
                lines={
                    "should run": line(replicas, "n_wanted"),
                    "take requests": line(replicas, "n_ready"),
                },
            ),
            Panel(
                label=f"seconds that requests waited, by {BIN_S:.0f} s",
                lines={
                    "the worst": line(facts["waits"], "worst_s"),
                    "the median": line(facts["waits"], "median_s"),
                },
                mark=("longest wait", facts["target_wait_s"]),
                digits=1,
            ),
            Panel(
                label="answers a second",
                lines={"answers": line(facts["answers"], "per_s")},
                digits=1,
            ),
        ],
    )


async def test_a_load_step_takes_three_replicas_and_then_one(scaled: RunningProduct) -> None:
    load = Load(product=scaled, tag="scaling", n_tokens=N_TOKENS)
    phases = await run(load)
    await wait_until_async(
        "the engines' records", lambda: len(load.waits()) == load.n_asked, timeout_s=60
    )
    changes = load.changes(DEPLOYMENT)
    keep(load, phases=phases, changes=changes)
    _, rising, held, falling = phases

    # Every request is answered, and charged once.
    assert load.n_asked == len(load.answers)
    assert {(each.status, each.finish_reason) for each in load.answers} == {(200, "length")}
    outcomes = scaled.rows(
        f"SELECT outcome, count(*) FROM metering_usagerecord WHERE end_user = '{load.tag}' "
        "GROUP BY outcome"
    )
    assert outcomes == [("completed", load.n_asked)]

    # It goes up once and down once, and each step is in the trail with its reason.
    numbers = [1, *(each.after for each in changes)]
    assert [each.before for each in changes] == numbers[:-1]
    assert numbers in ([1, 3, 2, 1], [1, 2, 3, 2, 1])
    assert all(each.actor == "system" and each.because for each in changes)
    ups = [each for each in changes if each.after > each.before]
    downs = [each for each in changes if each.after < each.before]
    assert all(rising.begin_s < each.at_s < held.begin_s for each in ups)
    assert all(each.at_s > falling.begin_s for each in downs)
    for earlier, later in pairwise([ups[-1], *downs]):
        assert later.at_s - earlier.at_s >= Pace().down_after_s - 1

    # Requests wait for long before, and not once all three replicas take them.
    waits = load.waits()
    assert max(wait for at, wait in waits if rising.begin_s < at < held.begin_s) > TARGET_S / 2
    settled_s = held.begin_s + Pace().settle_s
    while_held = sorted(wait for at, wait in waits if settled_s < at < held.end_s)
    print(f"{len(while_held)} requests while held: median {while_held[len(while_held) // 2]:.2f} s")
    assert while_held[int(0.95 * len(while_held))] < TARGET_S
    later = sorted(wait for at, wait in waits if at > falling.begin_s + Pace().settle_s)
    assert later[int(0.95 * len(later))] < TARGET_S

    check_left(scaled)


def check_left(product: RunningProduct) -> None:
    """One engine is left of those that served, and none of them crashed."""
    query = f"SELECT name FROM engines_engineprocess WHERE name LIKE '{DEPLOYMENT}-%'"
    assert product.rows(query) == [(CHAT_ENGINE,)]
    assert product.rows("SELECT count(*) FROM engines_enginecrash") == [(0,)]
    engines = [
        child for child in product.descendants() if "engine_service" in " ".join(child.cmdline())
    ]
    sockets = {str(path) for path in Path(product.engine().socket_path).parent.glob("e*.sock")}
    assert len(engines) == len(sockets) == 2  # the embedding model's is the other
