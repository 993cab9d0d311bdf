"""What experiments do to a request, from memory: no database here."""

from types import MappingProxyType
from typing import Any

import pytest

from apps.core.limits import UNLIMITED
from apps.experiments.assigning import N_SLOTS, subject_digest, subject_slot
from apps.experiments.enrolling import ExperimentPlan, ExperimentSnapshot, VariantPlan
from apps.experiments.types import (
    MAX_AT_ONCE,
    Arm,
    Caller,
    Eligibility,
    arms_read,
)
from apps.rbac.types import Principal
from apps.routing.types import Destination

NEW = Destination(
    deployment_id=2, deployment_name="new", model_version_id=2, context_length=2048, weight=100
)


def caller(**fields: Any) -> Caller:
    principal = Principal(
        tenant_id=fields.pop("tenant_id", 1),
        tenant_slug=fields.pop("tenant", "acme"),
        cache_salt="0" * 64,
        label="t",
        limits=UNLIMITED,
        api_token_id=fields.pop("token", None),
    )
    return Caller(**{"principal": principal, "door": "rest", "end_user": "joe", **fields})


def plan(number: int = 1, *variants: VariantPlan, **fields: Any) -> ExperimentPlan:
    """Return an experiment of a layer of its own; without variants everybody is in one arm."""
    arms = variants or (VariantPlan(id=number * 10, weight=50),)
    values: dict[str, Any] = {
        "id": number,
        "salt": f"{number:032x}",
        "layer_id": number,
        "layer_salt": f"{number + 100:032x}",
        "slots": ((0, N_SLOTS),),
        "subject": "end_user",
        "eligibility": Eligibility(),
        "variants": MappingProxyType({each.id: each for each in arms}),
        "weights": MappingProxyType({each.id: each.weight for each in arms}),
    }
    return ExperimentPlan(**values | fields)


def running(*plans: ExperimentPlan) -> ExperimentSnapshot:
    return ExperimentSnapshot(by_route=MappingProxyType({"chat": plans}))


def takes_part(one: ExperimentPlan, who: Caller) -> bool:
    return running(one).enrol("chat", who) is not None


def test_nothing_runs() -> None:
    assert ExperimentSnapshot().enrol("chat", caller()) is None
    assert running(plan()).enrol("other", caller()) is None


def test_one_experiment() -> None:
    found = running(plan(3, VariantPlan(id=31, weight=50, destinations=(NEW,)))).enrol(
        "chat", caller()
    )
    assert found is not None
    subject = subject_digest(salt=f"{3:032x}", kind="end_user", tenant_id=1, identifier="joe")
    assert found.arms == (Arm(experiment_id=3, variant_id=31, subject=subject),)
    assert found.said == f"e3.v31.{subject}"
    assert arms_read(found.said) == found.arms
    assert (found.destinations, dict(found.parameters), found.prompt_template) == ((NEW,), {}, "")


@pytest.mark.parametrize(
    ("kind", "without", "with_one"),
    [
        ("end_user", {"end_user": ""}, {"end_user": "joe"}),
        ("conversation", {}, {"conversation": "thread-7"}),
        ("token", {}, {"token": 5}),
    ],
)
def test_who_has_no_subject_takes_no_part(
    kind: str, without: dict[str, Any], with_one: dict[str, Any]
) -> None:
    assert not takes_part(plan(subject=kind), caller(**without))
    assert takes_part(plan(subject=kind), caller(**with_one))


@pytest.mark.parametrize(
    ("said", "inside", "outside"),
    [
        ({"tenants": ["acme"]}, {}, {"tenant": "other"}),
        ({"doors": ["rest", "batch"]}, {"door": "batch"}, {"door": "websocket"}),
        ({"api_tokens": [5]}, {"token": 5}, {"token": 6}),
        ({"api_tokens": [5]}, {"token": 5}, {}),
        ({"end_user_prefixes": ["vip-", "j"]}, {}, {"end_user": "amy"}),
        ({"tenants": ["acme"], "doors": ["rest"]}, {}, {"door": "batch"}),
        ({"tenants": []}, {}, None),
    ],
)
def test_eligibility(
    said: dict[str, Any], inside: dict[str, Any], outside: dict[str, Any] | None
) -> None:
    one = plan(eligibility=Eligibility.read(said))
    assert takes_part(one, caller(**inside))
    if outside is not None:
        assert not takes_part(one, caller(**outside))


def test_only_who_falls_into_its_slots_takes_part() -> None:
    slot = subject_slot(layer_salt=f"{101:032x}", kind="end_user", tenant_id=1, identifier="joe")
    assert takes_part(plan(slots=((slot, slot + 1),)), caller())
    assert not takes_part(plan(slots=((0, slot), (slot + 1, N_SLOTS))), caller())


def test_a_bare_text_has_no_place_for_a_template() -> None:
    assert takes_part(plan(), caller(has_turns=False))
    assert not takes_part(plan(needs_turns=True), caller(has_turns=False))
    assert takes_part(plan(needs_turns=True), caller())


def test_experiments_of_several_layers_at_once() -> None:
    found = running(
        plan(1, VariantPlan(id=10, weight=1, destinations=(NEW,))),
        plan(2, VariantPlan(id=20, weight=1, parameters=MappingProxyType({"top_p": 0.5}))),
        plan(3, VariantPlan(id=30, weight=1, parameters=MappingProxyType({"temperature": 0.1}))),
        plan(4, VariantPlan(id=40, weight=1, prompt_template="Be short.")),
    ).enrol("chat", caller())
    assert found is not None
    assert [each.variant_id for each in found.arms] == [10, 20, 30, 40]
    assert found.destinations == (NEW,)
    assert dict(found.parameters) == {"top_p": 0.5, "temperature": 0.1}
    assert found.prompt_template == "Be short."


def test_where_two_would_set_the_same_the_older_does() -> None:
    old = VariantPlan(
        id=10, weight=1, parameters=MappingProxyType({"top_p": 0.5}), prompt_template="Old."
    )
    new = VariantPlan(
        id=20, weight=1, parameters=MappingProxyType({"top_p": 0.9}), prompt_template="New."
    )
    found = running(plan(1, old), plan(2, new)).enrol("chat", caller())
    assert found is not None
    assert (dict(found.parameters), found.prompt_template) == ({"top_p": 0.5}, "Old.")


def test_a_layer_has_one_of_them_at_most() -> None:
    found = running(plan(1), plan(2, layer_id=1), plan(3)).enrol("chat", caller())
    assert found is not None
    assert [each.experiment_id for each in found.arms] == [1, 3]


def test_what_the_ledger_is_told_fits_its_column() -> None:
    large = 10**9
    found = running(
        *(plan(large + n, VariantPlan(id=large * 9 + n, weight=1)) for n in range(9))
    ).enrol("chat", caller())
    assert found is not None
    assert len(found.arms) == MAX_AT_ONCE
    assert len(found.said) <= 250
    assert arms_read(found.said) == found.arms


@pytest.mark.parametrize("text", ["e1.v2", "x1.v2.ab", "e1.w2.ab", "e1.v2.", "eone.v2.ab", ","])
def test_what_names_no_arm(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        arms_read(text)


def test_no_arms() -> None:
    assert arms_read("") == ()
