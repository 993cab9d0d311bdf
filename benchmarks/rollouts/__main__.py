"""How long a worse version is answering before it is rolled back, and how often an equal one is.

    python -m benchmarks.rollouts [--quick] [--processes N]

Simulated streams through the judging functions of ``apps.rollouts`` with the guardrails that a
rollout has by default. By the size of the regression and the share of the new version: requests and
seconds until rollback, where 20 requests a second come to both together. Whole rollouts of an equal
version, and of one that is exactly as much worse as is allowed, say how often one is rolled back
that should not be. Writes results/rollouts.json and .svg.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from apps.rollouts.judging import Agreed
from apps.rollouts.types import DEFAULT_GUARDRAILS, DEFAULT_STEPS, GuardrailSpec, StepSpec
from benchmarks.plot import bars
from benchmarks.rollouts.streams import Ended, Version, middle, rollout

RESULT: Final = Path(__file__).parents[1] / "results" / "rollouts.json"
PER_SECOND: Final = 20.0
MOST_S: Final = 4 * 3600.0
PERCENTS: Final = (1.0, 10.0, 50.0)
POINTS: Final = (1, 2, 5, 10, 20, 50)
FACTORS: Final = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0)
OLD: Final = Version()
ALPHA: Final = 0.05


def agreed(
    steps: Sequence[StepSpec] = DEFAULT_STEPS,
    guardrails: Sequence[GuardrailSpec] = DEFAULT_GUARDRAILS,
) -> Agreed:
    return Agreed(steps=tuple(steps), guardrails=tuple(guardrails), alpha=ALPHA)


def held_at(percent: float) -> Agreed:
    """The usual rollout, whose step of that share does not end by itself."""
    return agreed(
        [replace(each, min_minutes=1e9) if each.percent == percent else each
         for each in DEFAULT_STEPS]
    )  # fmt: skip


def cell(name: str, percent: float, new: Version, n: int, seed: int) -> dict[str, Any]:
    plan, random = held_at(percent), np.random.default_rng(seed)
    first = next(k for k, each in enumerate(plan.steps) if each.percent == percent)
    ends = [
        rollout(plan, old=OLD, new=new, per_second=PER_SECOND, most_step_s=MOST_S, random=random,
                first=first)
        for _ in range(n)
    ]  # fmt: skip
    return {"regression": name, "percent": percent, "n_rollouts": n, **_times(ends)}


def _times(ends: Sequence[Ended]) -> dict[str, Any]:
    back = [each for each in ends if each.is_back]
    found: dict[str, Any] = {"rolled_back": len(back)}
    if len(back) * 2 > len(ends):
        for name in ("after_s", "n_requests", "n_candidate"):
            values = [float(getattr(each, name)) for each in back]
            found[name] = {"median": round(middle(values, 0.5)), "p90": round(middle(values, 0.9))}
    return found


def chunk(new: Version, plan: Agreed, n: int, seed: int) -> list[Ended]:
    """Return some whole rollouts, from the first step on."""
    random = np.random.default_rng(seed)
    return [
        rollout(plan, old=OLD, new=new, per_second=PER_SECOND, most_step_s=MOST_S, random=random)
        for _ in range(n)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rollouts; writes nothing")
    parser.add_argument("--processes", type=int, default=None, help="as many as there are cores")
    options = parser.parse_args()
    begun = time.monotonic()
    with ProcessPoolExecutor(options.processes) as pool:
        alarms = _alarms(pool, is_quick=options.quick)
        cells = _cells(pool, n=2 if options.quick else 40)
    for line in [*cells, *alarms]:
        print(json.dumps(line))
    print(f"took {time.monotonic() - begun:.0f} s")
    assert all(each["part"] <= ALPHA for each in alarms), "more are rolled back than agreed"
    if not options.quick:
        result = {
            "per_second": PER_SECOND, "alpha": ALPHA, "most_hours": MOST_S / 3600,
            "until_rollback": cells, "false_rollbacks": alarms,
        }  # fmt: skip
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
        RESULT.with_suffix(".svg").write_text(picture(cells))


def _cells(pool: Executor, *, n: int) -> list[dict[str, Any]]:
    found = []
    for percent in PERCENTS:
        for points in POINTS:
            new = replace(OLD, error_rate=OLD.error_rate + points / 100)
            found.append(pool.submit(cell, f"+{points} points", percent, new, n, points))
        for factor in FACTORS:
            new = replace(OLD, ttft_ms=OLD.ttft_ms * factor)
            found.append(pool.submit(cell, f"x{factor:g}", percent, new, n, int(100 * factor)))
    return [each.result() for each in found]


def _alarms(pool: Executor, *, is_quick: bool) -> list[dict[str, Any]]:
    """An equal version, with the usual tolerances and with none; and one that is as much worse as
    is allowed, in everything at once."""
    strict = agreed(guardrails=[replace(each, tolerance=0.0) for each in DEFAULT_GUARDRAILS])
    worse = replace(
        OLD,
        error_rate=OLD.error_rate + 0.01,
        empty_rate=OLD.empty_rate + 0.02,
        ttft_ms=OLD.ttft_ms * 1.25,
        itl_ms=OLD.itl_ms * 1.25,
    )
    asked = [
        ("equal", OLD, agreed(), 1000),
        ("equal, where nothing worse is allowed", OLD, strict, 300),
        ("as much worse as is allowed, in everything", worse, agreed(), 300),
    ]
    begun = []
    for number, (name, new, plan, n) in enumerate(asked):
        sizes = [2] if is_quick else [20] * (n // 20)
        parts = [
            pool.submit(chunk, new, plan, size, 1000 * (number + 1) + k)
            for k, size in enumerate(sizes)
        ]
        begun.append((name, parts))
    found = []
    for name, parts in begun:
        ends = [each for part in parts for each in part.result()]
        by = Counter(each.metric for each in ends if each.is_back)
        n_back = by.total()
        found.append({"version": name, "n_rollouts": len(ends), "rolled_back": n_back,
                      "by": dict(by), "part": n_back / len(ends)})  # fmt: skip
    return found


def picture(cells: Sequence[dict[str, Any]]) -> str:
    """Draw the median seconds; what is not rolled back within the longest time is left out."""
    groups: dict[str, dict[str, float]] = {}
    for each in cells:
        if "after_s" in each:
            values = groups.setdefault(each["regression"], {})
            values[f"{each['percent']:g} % to the new version"] = each["after_s"]["median"]
    title = (
        "Seconds until a worse version is rolled back (median; 20 requests a second), by how much "
        "more fails and how much longer the first token takes"
    )
    return bars(title=title, groups=groups)


if __name__ == "__main__":
    main()
