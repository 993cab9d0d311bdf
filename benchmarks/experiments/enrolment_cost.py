"""What it costs a request to be asked whether it is in an experiment: see ``assignment``."""

import time
from collections.abc import Callable
from types import MappingProxyType

from apps.core.limits import UNLIMITED
from apps.experiments.assigning import N_SLOTS
from apps.experiments.enrolling import ExperimentPlan, ExperimentSnapshot, VariantPlan
from apps.experiments.types import Caller, Eligibility
from apps.rbac.types import Principal


def costs() -> dict[str, float]:
    """Return microseconds of an enrolment, by what runs on the route."""
    caller = Caller(
        principal=Principal(
            tenant_id=1, tenant_slug="acme", cache_salt="0" * 64, label="t", limits=UNLIMITED
        ),
        door="rest",
        end_user="user-7",
    )
    found = {}
    for said, plans in (
        ("no experiment", 0),
        ("one experiment", 1),
        ("three layers", 3),
    ):
        by_route = {"chat": tuple(_plan(number) for number in range(plans))} if plans else {}
        snapshot = ExperimentSnapshot(by_route=MappingProxyType(by_route))
        found[said] = _microseconds(lambda snapshot=snapshot: snapshot.enrol("chat", caller))
    return found


def _plan(number: int) -> ExperimentPlan:
    weights = MappingProxyType({10 * number + 1: 50, 10 * number + 2: 50})
    return ExperimentPlan(
        id=number + 1,
        salt=f"{number:032x}",
        layer_id=number,
        layer_salt=f"{number + 100:032x}",
        slots=((0, N_SLOTS),),
        subject="end_user",
        eligibility=Eligibility(tenants=frozenset({"acme"})),
        variants=MappingProxyType({key: VariantPlan(id=key, weight=50) for key in weights}),
        weights=weights,
    )


def _microseconds(call: Callable[[], object], *, n: int = 20_000) -> float:
    """Return the least of five means, of processor time: others may use the machine as well."""
    means = []
    for _ in range(5):
        started = time.process_time()
        for _ in range(n):
            call()
        means.append((time.process_time() - started) / n)
    return round(min(means) * 1e6, 2)
