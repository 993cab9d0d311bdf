"""The experiments that run, as one process holds them: which of them a request takes part in, and
what they do to it. In memory and without I/O, so that it costs microseconds, and nothing where no
experiment runs on the route."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from apps.experiments.assigning import (
    Slots,
    is_within,
    subject_digest,
    subject_slot,
    variant_of,
)
from apps.experiments.types import MAX_AT_ONCE, Arm, Caller, Eligibility, Enrolment, SubjectKind
from apps.judging.types import Sampling
from apps.routing.types import Destination


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantPlan:
    """destinations: None where it leaves that to the route."""

    id: int
    weight: int
    destinations: tuple[Destination, ...] | None = None
    parameters: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    prompt_template: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentPlan:
    """variants: by id, as ``weights`` is. needs_turns: an arm has a prompt template, which a bare
    text to continue has no place for: it takes part in none of its arms. judges: who score answers
    of all its arms."""

    id: int
    salt: str
    layer_id: int
    layer_salt: str
    slots: Slots
    subject: SubjectKind
    eligibility: Eligibility
    variants: Mapping[int, VariantPlan]
    weights: Mapping[int, int]
    needs_turns: bool = False
    judges: tuple[Sampling, ...] = ()

    def arm_of(self, caller: Caller) -> Arm | None:
        """Return the arm that a caller is in; None where it does not take part."""
        name = caller.subject(self.subject)
        if (
            not name
            or (self.needs_turns and not caller.has_turns)
            or not self.eligibility.admits(caller)
        ):
            return None
        tenant_id = caller.principal.tenant_id
        slot = subject_slot(
            layer_salt=self.layer_salt, kind=self.subject, tenant_id=tenant_id, identifier=name
        )
        if not is_within(slot, self.slots):
            return None
        subject = subject_digest(
            salt=self.salt, kind=self.subject, tenant_id=tenant_id, identifier=name
        )
        variant_id = variant_of(salt=self.salt, subject=subject, weights=self.weights)
        return Arm(experiment_id=self.id, variant_id=variant_id, subject=subject)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentSnapshot:
    """What runs, by the route's own name, the oldest first."""

    by_route: Mapping[str, tuple[ExperimentPlan, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def enrol(self, route_name: str, caller: Caller) -> Enrolment | None:
        """Return what experiments do to a request; None where it takes part in none.

        Where two would set the same, which no start allows, the older one does.
        """
        plans = self.by_route.get(route_name)
        if plans is None:
            return None
        arms: list[Arm] = []
        found: list[VariantPlan] = []
        judges: dict[int, Sampling] = {}
        layers: set[int] = set()
        for plan in plans:
            if plan.layer_id in layers or len(arms) == MAX_AT_ONCE:
                continue
            if (arm := plan.arm_of(caller)) is not None:
                layers.add(plan.layer_id)
                arms.append(arm)
                found.append(plan.variants[arm.variant_id])
                judges |= {each.judge_id: each for each in plan.judges}
        return _merged(tuple(arms), found, tuple(judges.values())) if arms else None


def _merged(
    arms: tuple[Arm, ...], variants: list[VariantPlan], judges: tuple[Sampling, ...]
) -> Enrolment:
    if len(variants) == 1:
        (only,) = variants
        return Enrolment(
            arms=arms,
            destinations=only.destinations,
            parameters=only.parameters,
            prompt_template=only.prompt_template,
            judges=judges,
        )
    parameters: dict[str, float] = {}
    for variant in reversed(variants):
        parameters.update(variant.parameters)
    leading = (each.destinations for each in variants if each.destinations is not None)
    templates = (each.prompt_template for each in variants if each.prompt_template)
    return Enrolment(
        arms=arms,
        destinations=next(leading, None),
        parameters=MappingProxyType(parameters),
        prompt_template=next(templates, ""),
        judges=judges,
    )
