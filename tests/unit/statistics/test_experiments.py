"""The simulation says of ``compare`` what ``compare`` says, and at a small scale it holds."""

import json
from math import log, log1p
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from apps.statistics.comparing import compare
from apps.statistics.moments import Moments
from apps.statistics.rates import evidence, streams
from benchmarks.experiments.__main__ import faults
from benchmarks.experiments.looking import Looks
from benchmarks.experiments.measuring import Found, coverage, false_alarms, mismatches, power
from benchmarks.experiments.plots import curves, levels
from benchmarks.experiments.running import (
    Observations,
    log_gamma,
    mean_looks,
    rate_evidence,
    running_moments,
)
from benchmarks.experiments.scenes import DIFFERENT, PLANNED, SAME, Scene
from benchmarks.experiments.worlds import World, errors, latency
from tests.unit.statistics.units import whole

SVG = "{http://www.w3.org/2000/svg}"
PEOPLE = {
    kind: World(
        kind=kind,  # type: ignore[arg-type]
        values=latency(sigma=0.7, person=0.5, effect=0.1, has_past=True, is_log=kind == "log_mean"),
        per_unit=3,
    )
    for kind in ("mean", "log_mean")
}
CLUSTERED = World(kind="rate", values=errors(rates=(0.02, 0.05), together=0.2), per_unit=3)


def units_until(seen: Observations, look: int) -> list[Moments]:
    """The same from the observations, unit by unit."""
    arms: list[dict[int, list[int]]] = [{}, {}]
    for unit, y in zip(seen.unit[: look + 1].tolist(), seen.y[: look + 1], strict=True):
        totals = arms[int(seen.arm[unit])].setdefault(unit, [0, 0])
        totals[0] += int(y)
        totals[1] += 1
    return [
        whole((y, x, int(seen.v[unit]), int(seen.u[unit])) for unit, (y, x) in arm.items())
        for arm in arms
    ]


@pytest.mark.parametrize("kind", ["mean", "log_mean"])
def test_all_looks_at_once_are_what_compare_says_of_each(kind: str) -> None:
    world = PEOPLE[kind]
    generator = np.random.default_rng(5)
    seen = world.draw(generator, 900)
    looks = mean_looks(*running_moments(seen), is_log=kind == "log_mean", planned_units=1000)
    reach = looks.radius(0.05) * looks.error
    least, most = (looks.farthest(0.05, sign=sign) for sign in (-1, 1))
    n_said = 0
    for look in [*generator.integers(0, len(seen), 12).tolist(), len(seen) - 1]:
        found = compare(*units_until(seen, look), kind=world.kind, alpha=0.05, planned_units=1000)
        assert (found.effect is None) == bool(np.isnan(looks.estimate[look]))
        if found.effect is None or found.low is None:
            continue
        n_said += 1
        assert log1p(found.effect) == pytest.approx(looks.estimate[look], rel=1e-5, abs=1e-8)
        low = looks.estimate[look] - reach[look]
        assert log1p(found.low) == pytest.approx(low, rel=1e-5, abs=1e-8)
        slack = 0.005 * (most[look] - least[look])
        assert found.difference_low == pytest.approx(least[look], abs=slack)
        assert found.difference_high == pytest.approx(most[look], abs=slack)
    assert n_said > 3


def test_running_moments_are_those_of_the_units() -> None:
    seen = PEOPLE["mean"].draw(np.random.default_rng(6), 60)
    running = running_moments(seen)
    for look in (0, 7, len(seen) - 1):
        for arm, expected in zip(running, units_until(seen, look), strict=True):
            assert arm.at(look).to_json() == pytest.approx(expected.to_json(), rel=1e-12)


def test_the_screen_of_rates_lets_no_alarm_pass() -> None:
    seen = CLUSTERED.draw(np.random.default_rng(7), 900)
    looks = Looks.of(seen, kind="rate", planned_units=800, alpha=0.05)
    screen = rate_evidence(looks.control, looks.treatment, planned_units=800)
    truth = rate_evidence(looks.control, looks.treatment, planned_units=800, rates=(0.02, 0.05))
    first = looks.first_alarm()
    assert first is not None
    for look in [*range(200, first, 150), first, len(seen) - 1]:
        found = looks.at(look)
        assert found.p_value is not None
        assert found.p_value == 1 or screen[look] >= log(1 / found.p_value) - 1e-6
        assert (found.p_value < 0.05) or look != first
        arms = looks.control.at(look), looks.treatment.at(look)
        angles = [float(np.arcsin(np.sqrt(rate))) for rate in (0.02, 0.05)]
        both = zip(streams(*arms, planned_units=800), angles, strict=True)
        assert truth[look] == pytest.approx(sum(evidence(s)(a) for s, a in both), abs=1e-6)


def test_the_logarithm_of_gamma_is_right() -> None:
    from math import lgamma

    for x in (0.5, 0.7, 3.0, 12.5, 1e3, 1e6):
        assert log_gamma(np.array([x]))[0] == pytest.approx(lgamma(x), rel=1e-10, abs=1e-9)


def test_at_a_small_scale_alarms_are_rare_and_intervals_hold() -> None:
    """120 experiments each: 5 % of them, and three standard errors more, are 13."""
    same = {scene.name: scene for scene in SAME}
    for name in ("latency, mean, one request each", "thumbs, 50 %, one each"):
        found = false_alarms(same[name], n_runs=120, seed=1).figures
        assert found["false_alarms"] <= 13 / 120
    different = {scene.name: scene for scene in DIFFERENT}
    held = coverage(different["latency, mean, +20 %"], n_runs=120, seed=1).figures
    assert held["coverage"] >= 1 - 13 / 120
    rare = Scene(
        name="rare",
        world=World(kind="rate", values=errors(rates=(0.005, 0.02))),
        planned_units=2000, n_units=2000, truth=(0.005, 0.02),
    )  # fmt: skip
    assert coverage(rare, n_runs=60, seed=1).figures["coverage"] >= 1 - 8 / 60


def test_a_wrong_boundary_would_be_noticed() -> None:
    """Looking each time at a fixed test is what the simulation calls far too many alarms."""
    found = false_alarms(SAME[0], n_runs=60, seed=2)
    assert found.figures["false_alarms_of_a_fixed_test"] > 0.15
    bold = Found({**found.figures, "false_alarms": 0.15, "runs": 1000})
    held = Found({"coverage": 0.95, "runs": 1000})
    weak = Found({"power": 0.6, "runs": 500})
    wrong = faults({"false_alarms": {"a": bold}, "coverage": {"b": held}, "power": {"c": weak}})
    assert wrong == ["a: false_alarms 0.15", "c: power 0.6"]


def test_a_planned_effect_is_found_by_the_planned_size() -> None:
    by_name = {scene.name: scene for scene in PLANNED}
    found = power(by_name["thumbs, 50 to 60 %"], n_runs=60, seed=3).figures
    assert found["power"] >= 0.8 - 3 * 0.052
    assert found["fixed_size"] < found["planned_size"] < 2.5 * found["fixed_size"]
    assert found["mean_size"] < found["planned_size"]


def test_a_mismatch_of_shares_is_noticed_and_halves_are_not() -> None:
    assert mismatches(true_share=0.5, n_runs=60, n_units=5000, seed=4).figures["alarms"] <= 8 / 60
    assert mismatches(true_share=0.45, n_runs=20, n_units=9000, seed=4).figures["alarms"] == 1


def test_curves_and_levels_are_drawn_where_they_are() -> None:
    drawn = ElementTree.fromstring(
        curves(title="a < b", x_label="looks", lines={"x": [(0, 0), (100, 0.05)]}, mark=0.05)
    )
    (path,) = drawn.iter(f"{SVG}path")
    top = 306 - 260 / 1.08
    assert path.get("d") == f"M60.0 306.0L620.0 {top:.1f}"
    drawn = ElementTree.fromstring(
        levels(title="T", values={"a": 0.95, "b": 2.0}, low=0.9, high=1, mark=0.95)
    )
    assert [dot.get("cx") for dot in drawn.iter(f"{SVG}circle")] == ["670.0", "900.0"]


def test_the_figures_that_are_kept_hold() -> None:
    kept = json.loads(
        (Path(__file__).parents[3] / "benchmarks/results/experiments.json").read_text()
    )
    assert kept["wrong"] == []
    assert kept["false_alarms"].keys() == {scene.name for scene in SAME}
    assert min(found["runs"] for found in kept["false_alarms"].values()) >= 1000
