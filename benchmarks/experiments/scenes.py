"""Which experiments are simulated. Each is run as if it had been planned, and looked at after every
observation, for longer than planned where nothing is to be found."""

from dataclasses import dataclass
from typing import Final

from benchmarks.experiments.worlds import World, errors, latency, latency_pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """planned_units: of both arms. n_units: how many come. truth: the metric in both arms."""

    name: str
    world: World
    planned_units: int
    n_units: int
    truth: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedScene:
    """An experiment whose size the planner finds, for a relative effect that is really there."""

    name: str
    without: World
    with_effect: World
    effect: float


USERS: Final = "people with 5 requests on average"
SAME: Final = (
    Scene(
        name="latency, mean, one request each",
        world=World(kind="mean", values=latency(sigma=1)),
        planned_units=2000, n_units=6000,
    ),
    Scene(
        name="latency, mean, very long tail, small plan",
        world=World(kind="mean", values=latency(sigma=1.5)),
        planned_units=400, n_units=6000,
    ),
    Scene(
        name="latency, mean, shares 90 to 10",
        world=World(kind="mean", values=latency(sigma=1), treatment_shares=(0.1,)),
        planned_units=2000, n_units=10_000,
    ),
    Scene(
        name="latency, mean, shares 1, 10, 50 %",
        world=World(kind="mean", values=latency(sigma=1), treatment_shares=(0.01, 0.1, 0.5)),
        planned_units=2000, n_units=10_000,
    ),
    Scene(
        name=f"latency, mean, {USERS}",
        world=World(kind="mean", values=latency(sigma=1, person=0.5), per_unit=5),
        planned_units=600, n_units=1800,
    ),
    Scene(
        name="latency, mean, with a past (CUPED)",
        world=World(
            kind="mean", values=latency(sigma=0.7, person=0.7, has_past=True), per_unit=3
        ),
        planned_units=1000, n_units=3000,
    ),
    Scene(
        name=f"latency, geometric mean, {USERS}",
        world=World(
            kind="log_mean", values=latency(sigma=1, person=0.5, is_log=True), per_unit=5
        ),
        planned_units=600, n_units=1800,
    ),
    Scene(
        name="latency, mean, a crowd that only grows older",
        world=World(kind="mean", values=latency(sigma=1), per_unit=20, is_crowd_fixed=True),
        planned_units=600, n_units=600,
    ),
    Scene(
        name="errors, 0.5 %, one request each",
        world=World(kind="rate", values=errors(rates=(0.005, 0.005))),
        planned_units=10_000, n_units=15_000,
    ),
    Scene(
        name=f"errors, 0.5 %, {USERS}, which fail together",
        world=World(
            kind="rate", values=errors(rates=(0.005, 0.005), together=0.2), per_unit=5
        ),
        planned_units=2000, n_units=3000,
    ),
    Scene(
        name="thumbs, 50 %, one each",
        world=World(kind="rate", values=errors(rates=(0.5, 0.5))),
        planned_units=1000, n_units=5000,
    ),
)  # fmt: skip

DIFFERENT: Final = (
    Scene(
        name="latency, mean, +20 %",
        world=World(kind="mean", values=latency(sigma=1, effect=0.2)),
        planned_units=2000, n_units=6000, truth=latency_pair(0.2, sigma=1),
    ),
    Scene(
        name="latency, mean, very long tail, small plan, +20 %",
        world=World(kind="mean", values=latency(sigma=1.5, effect=0.2)),
        planned_units=400, n_units=6000, truth=latency_pair(0.2, sigma=1.5),
    ),
    Scene(
        name="latency, mean, very long tail, 90 to 10, +100 %",
        world=World(
            kind="mean", values=latency(sigma=1.5, effect=1.0), treatment_shares=(0.1,)
        ),
        planned_units=2000, n_units=15_000, truth=latency_pair(1.0, sigma=1.5),
    ),
    Scene(
        name=f"latency, geometric mean, {USERS}, +20 %",
        world=World(
            kind="log_mean", values=latency(sigma=1, person=0.5, effect=0.2, is_log=True),
            per_unit=5,
        ),
        planned_units=600, n_units=1800, truth=latency_pair(0.2, sigma=0),
    ),
    Scene(
        name="errors, 0.5 and 1 %",
        world=World(kind="rate", values=errors(rates=(0.005, 0.01))),
        planned_units=10_000, n_units=12_000, truth=(0.005, 0.01),
    ),
    Scene(
        name="errors, 0.05 and 0.1 %",
        world=World(kind="rate", values=errors(rates=(0.0005, 0.001))),
        planned_units=10_000, n_units=12_000, truth=(0.0005, 0.001),
    ),
    Scene(
        name=f"errors, 0.5 and 1 %, {USERS}, which fail together",
        world=World(
            kind="rate", values=errors(rates=(0.005, 0.01), together=0.2), per_unit=5
        ),
        planned_units=2000, n_units=2500, truth=(0.005, 0.01),
    ),
)  # fmt: skip

PLANNED: Final = (
    PlannedScene(
        name="latency, mean, +15 %",
        without=World(kind="mean", values=latency(sigma=1)),
        with_effect=World(kind="mean", values=latency(sigma=1, effect=0.15)),
        effect=0.15,
    ),
    PlannedScene(
        name="latency, mean, +30 %, 90 to 10",
        without=World(kind="mean", values=latency(sigma=1), treatment_shares=(0.1,)),
        with_effect=World(
            kind="mean", values=latency(sigma=1, effect=0.3), treatment_shares=(0.1,)
        ),
        effect=0.3,
    ),
    PlannedScene(
        name=f"latency, mean, {USERS}, +15 %",
        without=World(kind="mean", values=latency(sigma=1, person=0.5), per_unit=5),
        with_effect=World(
            kind="mean", values=latency(sigma=1, person=0.5, effect=0.15), per_unit=5
        ),
        effect=0.15,
    ),
    PlannedScene(
        name="latency, mean, with a past (CUPED), +15 %",
        without=World(
            kind="mean", values=latency(sigma=0.7, person=0.7, has_past=True), per_unit=3
        ),
        with_effect=World(
            kind="mean", values=latency(sigma=0.7, person=0.7, effect=0.15, has_past=True),
            per_unit=3,
        ),
        effect=0.15,
    ),
    PlannedScene(
        name=f"latency, geometric mean, {USERS}, +15 %",
        without=World(
            kind="log_mean", values=latency(sigma=1, person=0.5, is_log=True), per_unit=5
        ),
        with_effect=World(
            kind="log_mean", values=latency(sigma=1, person=0.5, effect=0.15, is_log=True),
            per_unit=5,
        ),
        effect=0.15,
    ),
    PlannedScene(
        name="errors, 0.5 to 1.5 %",
        without=World(kind="rate", values=errors(rates=(0.005, 0.005))),
        with_effect=World(kind="rate", values=errors(rates=(0.005, 0.015))),
        effect=2.0,
    ),
    PlannedScene(
        name="errors, 1 to 4 %, 90 to 10",
        without=World(kind="rate", values=errors(rates=(0.01, 0.01)), treatment_shares=(0.1,)),
        with_effect=World(
            kind="rate", values=errors(rates=(0.01, 0.04)), treatment_shares=(0.1,)
        ),
        effect=3.0,
    ),
    PlannedScene(
        name=f"errors, 2 to 4 %, {USERS}, which fail together",
        without=World(
            kind="rate", values=errors(rates=(0.02, 0.02), together=0.2), per_unit=5
        ),
        with_effect=World(
            kind="rate", values=errors(rates=(0.02, 0.04), together=0.2), per_unit=5
        ),
        effect=1.0,
    ),
    PlannedScene(
        name="thumbs, 50 to 60 %",
        without=World(kind="rate", values=errors(rates=(0.5, 0.5))),
        with_effect=World(kind="rate", values=errors(rates=(0.5, 0.6))),
        effect=0.2,
    ),
)  # fmt: skip
