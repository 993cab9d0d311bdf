"""The benchmark beside other engines: what it computes, and that a failing peer only drops out."""

import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

from benchmarks.engine.peers import report, rounds
from benchmarks.engine.peers.lines import LineSystem
from benchmarks.plot import bars
from benchmarks.workload import Job, Measure, Timeline, measure_of

DRIVER = """
import json, sys
print(json.dumps({"version": "7"}), flush=True)
for line in sys.stdin:
    jobs = json.loads(line)["jobs"]
    if len(jobs) == 3:
        print("ValueError: three is too many", file=sys.stderr)
        break
    answers = [
        {"started_s": 0.0, "arrivals": [[i + 1.0, 1] for i in range(job["n_new"])],
         "token_ids": [7] * job["n_new"]}
        for job in jobs
    ]
    print(json.dumps({"answers": answers}), flush=True)
"""


def a_measure(*, tokens_per_s: float = 1.0, ttft_ms: float = 1.0) -> Measure:
    rest = dict.fromkeys(("ttft_p95_ms", "itl_ms", "itl_p99_ms", "itl_worst_ms"), 1.0)
    return Measure(tokens_per_s=tokens_per_s, ttft_ms=ttft_ms, **rest)


def a_system(tmp_path: Path, name: str, *, levels: tuple[int, ...]) -> LineSystem:
    return LineSystem(
        name=name,
        how="a fake",
        levels=levels,
        command=[sys.executable, "-c", DRIVER],
        env=os.environ,
        log=tmp_path / f"{name}.log",
        start_timeout_s=30,
    )


def test_figures_of_a_run() -> None:
    jobs = [Job(prompt=(1,), n_new=3, seed=0)] * 2
    timelines = [
        Timeline(0.0, [(1.0, 1), (1.5, 1), (2.0, 1)]),
        Timeline(0.5, [(2.5, 1), (4.5, 2)]),
    ]
    measure = measure_of(jobs, timelines)
    assert measure.tokens_per_s == pytest.approx(6 / 4.5)
    assert (measure.ttft_ms, measure.ttft_p95_ms) == (1500.0, 2000.0)
    assert (measure.itl_ms, measure.itl_worst_ms) == (750.0, 1000.0)
    with pytest.raises(RuntimeError, match="3 tokens came, 4 were due"):
        measure_of([Job(prompt=(1,), n_new=4, seed=0)], timelines[:1])


def test_ratio_is_of_medians_and_judged() -> None:
    speeds = {"ours": (140.0, 100.0, 150.0), "vLLM": (100.0, 90.0, 200.0)}
    measures = {
        name: {8: [a_measure(tokens_per_s=speed) for speed in values]}
        for name, values in speeds.items()
    }
    target = report.Target("ours", "vLLM", 8, "tokens_per_s", least=1.4)
    found = report.ratio(measures, target)
    assert found == {
        "target": "tokens_per_s of ours >= 1.4 x vLLM at 8",
        "ratio": 1.4,
        "by_round": [1.4, 1.111, 0.75],
        "met": True,
    }
    assert report.ratio(measures, report.Target("ours", "vLLM", 1, "tokens_per_s")) is None
    slower = report.Target("ours", "vLLM", 8, "tokens_per_s", most=1.0)
    assert not slower.is_met(1.4)


async def test_systems_take_turns_and_a_failing_one_drops_out(tmp_path: Path) -> None:
    outcome = rounds.Outcome()
    steady = a_system(tmp_path, "steady", levels=(4,))
    failing = a_system(tmp_path, "failing", levels=(1, 4))
    living = await rounds.start([steady, failing], outcome)
    try:
        assert [system.name for system in living] == ["steady", "failing"]
        assert steady.how == "7, a fake"
        child = steady._child
        assert child is not None
        (process,) = child.family()
        assert process.status() == psutil.STATUS_STOPPED
        # One at a time means three jobs, which the fake takes badly.
        await rounds.play(living, outcome, levels=[1, 4], n_rounds=2, vocab_size=1000)
    finally:
        for system in (steady, failing):
            await system.stop()
    assert "three is too many" in outcome.failed["failing"]
    assert len(outcome.measures["steady"][4]) == 2
    assert "failing" not in outcome.measures
    assert not process.is_running()


def test_picture_has_a_bar_for_each_value() -> None:
    drawn = ElementTree.fromstring(bars(title="a < b", groups={"x": {"ours": 4.0, "it": 2.0}}))
    svg = "{http://www.w3.org/2000/svg}"
    titled = [rect for rect in drawn.iter(f"{svg}rect") if rect.find(f"{svg}title") is not None]
    assert [float(rect.get("height", "0")) for rect in titled] == [240.0, 120.0]
