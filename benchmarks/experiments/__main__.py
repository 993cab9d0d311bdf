"""Whether one may believe the pages of experiments: false alarms, power, coverage, sharpness.

    python -m benchmarks.experiments [--quick] [--into benchmarks/results]

Every experiment is looked at after every observation. What is measured must hold within the chance
of as many runs (a one-sided bound of 1 in 1,000), else it ends with 1.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any, Final

from benchmarks.experiments.measuring import (
    ALPHA,
    POWER,
    Found,
    coverage,
    false_alarms,
    mismatches,
    power,
    speeds,
)
from benchmarks.experiments.plots import curves, levels
from benchmarks.experiments.scenes import DIFFERENT, PLANNED, SAME

RESULTS: Final = Path(__file__).parents[1] / "results"
N_RUNS: Final = 1000
N_POWER_RUNS: Final = 500
QUICK_RUNS: Final = 6
MISMATCH_UNITS: Final = 20_000
SEED: Final = 20_261_127  # of none that anything was chosen by
SURELY: Final = 3.09  # standard errors: 1 in 1,000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a handful of runs of each")
    parser.add_argument("--into", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    begin = time.process_time()
    many = QUICK_RUNS if chosen.quick else N_RUNS
    found: dict[str, dict[str, Found]] = {
        "false_alarms": _each(
            (scene.name, lambda seed, s=scene: false_alarms(s, n_runs=many, seed=seed))
            for scene in SAME
        ),
        "coverage": _each(
            (scene.name, lambda seed, s=scene: coverage(s, n_runs=many, seed=seed))
            for scene in DIFFERENT
        ),
        "power": _each(
            (
                scene.name,
                lambda seed, s=scene: power(
                    s, n_runs=QUICK_RUNS if chosen.quick else N_POWER_RUNS, seed=seed
                ),
            )
            for scene in PLANNED
        ),
        "mismatch": _each(
            (
                f"halves that are {share:.0%}",
                lambda seed, s=share: mismatches(
                    true_share=s, n_runs=many, n_units=MISMATCH_UNITS, seed=seed
                ),
            )
            for share in (0.5, 0.48, 0.45)
        ),
    }
    wrong = faults(found)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu_count": os.cpu_count(),
        "alpha": ALPHA,
        "power_planned": POWER,
        **{part: {name: f.figures for name, f in of.items()} for part, of in found.items()},
        "milliseconds_of_a_comparison": speeds(),
        "processor_seconds": round(time.process_time() - begin),
        "wrong": wrong,
    }
    _write(chosen.into, report, found)
    print(json.dumps(wrong))
    if wrong and not chosen.quick:
        sys.exit(1)


def _each(scenes: Any) -> dict[str, Found]:
    results = {}
    for seed, (name, run) in enumerate(scenes, start=SEED):
        results[name] = run(seed)
        print(f"{name}: {json.dumps(results[name].figures)}", flush=True)
    return results


def faults(found: Mapping[str, Mapping[str, Found]]) -> list[str]:
    """Return what is surely not as it is said to be."""
    wrong = []
    checks = (
        ("false_alarms", "false_alarms", ALPHA, 1),
        ("coverage", "coverage", 1 - ALPHA, -1),
        ("power", "power", POWER, -1),
    )
    for part, figure, level, sign in checks:
        for name, result in found[part].items():
            slack = SURELY * sqrt(level * (1 - level) / result.figures["runs"])
            if sign * (result.figures[figure] - level) > slack:
                wrong.append(f"{name}: {figure} {result.figures[figure]}")
    return wrong


def _write(into: Path, report: Mapping[str, Any], found: Mapping[str, Mapping[str, Found]]) -> None:
    into.mkdir(parents=True, exist_ok=True)
    (into / "experiments.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    first = next(iter(found["false_alarms"].values()))
    pictures = {
        "experiments-looks": curves(
            title="Share of experiments without any difference in which one was found",
            x_label="looks, one after each observation (latency, mean, one request each)",
            lines=first.curves, mark=ALPHA,
        ),
        "experiments-false-alarms": levels(
            title="False alarms, with a look after every observation",
            values=_figures(found["false_alarms"], "false_alarms"), low=0, high=0.1, mark=ALPHA,
        ),
        "experiments-coverage": levels(
            title="Intervals that were right at every look",
            values=_figures(found["coverage"], "coverage"), low=0.9, high=1, mark=1 - ALPHA,
        ),
        "experiments-power": levels(
            title="Planned effects that were found by the planned size",
            values=_figures(found["power"], "power"), low=0.5, high=1, mark=POWER,
        ),
    }  # fmt: skip
    for name, picture in pictures.items():
        (into / f"{name}.svg").write_text(picture)


def _figures(found: Mapping[str, Found], figure: str) -> dict[str, float]:
    return {name: result.figures[figure] for name, result in found.items()}


if __name__ == "__main__":
    main()
