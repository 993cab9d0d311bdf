"""Experiments that run, and rows of the ledger as their arms would leave them, without services."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from apps.experiments.assigning import subject_digest, variant_of
from apps.experiments.models import Experiment, ExperimentMetric, Layer, Variant, VariantTotal
from apps.metering.models import UsageRecord
from tests.factories import MetricEventFactory, RouteFactory, UsageRecordFactory
from tests.rows import all_of

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
ALL_METRICS = (
    ("latency", "primary", "lower"),
    ("ttft", "secondary", "lower"),
    ("itl", "secondary", "lower"),
    ("completion_tokens", "secondary", "lower"),
    ("cost", "secondary", "lower"),
    ("empty_rate", "secondary", "lower"),
    ("thumbs_up_rate", "secondary", "higher"),
    ("event:score", "secondary", "higher"),
    ("sum:score", "secondary", "higher"),
    ("error_rate", "guardrail", "lower"),
)
Metrics = Sequence[tuple[str, str, str]]


def experiment(
    *arms: tuple[str, int], metrics: Metrics = ALL_METRICS, name: str = "shorter", **fields: Any
) -> Experiment:
    """One that runs since NOON. arms: names and weights, the control first."""
    layer, _ = Layer.objects.get_or_create(name="default", defaults={"salt": "layer"})
    route = fields.pop("route", None) or RouteFactory(name=f"chat-{name}")
    made = Experiment.objects.create(
        **{
            "name": name, "route": route, "layer": layer, "salt": f"salt-{name}",
            "state": "running", "started_at": NOON, "weights_set_at": NOON, "slots": [[0, 10_000]],
            **fields,
        }
    )  # fmt: skip
    for place, (arm, weight) in enumerate(arms or (("control", 50), ("b", 50))):
        Variant.objects.create(experiment=made, name=arm, weight=weight, is_control=place == 0)
    for metric, role, better in metrics:
        ExperimentMetric.objects.create(experiment=made, metric=metric, role=role, better=better)
    return made


def variants(made: Experiment) -> list[Variant]:
    return list(Variant.objects.filter(experiment=made).order_by("id"))


def arm_of(
    made: Experiment, person: str, *, tenant_id: int = 1, variant: Variant | None = None
) -> str:
    """What the ledger says of a person: as they would be assigned, or of this variant."""
    digest = subject_digest(
        salt=made.salt, kind=made.subject, tenant_id=tenant_id, identifier=person
    )
    weights = {each.pk: each.weight for each in variants(made)}
    pk = variant.pk if variant else variant_of(salt=made.salt, subject=digest, weights=weights)
    return f"e{made.pk}.v{pk}.{digest}"


def asked(
    made: Experiment,
    person: str,
    *,
    variant: Variant | None = None,
    after_s: float = 60,
    **fields: Any,
) -> UsageRecord:
    """A settled request of a person, some seconds after NOON."""
    fields = {"tenant_id": 1, "route_name": made.route.name, **fields}
    row: UsageRecord = UsageRecordFactory(
        end_user=person,
        experiment_arm=arm_of(made, person, tenant_id=fields["tenant_id"], variant=variant),
        created_at=NOON + timedelta(seconds=after_s),
        **fields,
    )
    return row


def said(row: UsageRecord, name: str, value: float) -> Any:
    """Something said of a request."""
    return MetricEventFactory(
        tenant_id=row.tenant_id,
        request_id=row.request_id,
        end_user=row.end_user,
        name=name,
        value=value,
        experiment_arm=row.experiment_arm,
        created_at=row.created_at + timedelta(seconds=5),
    )


def totals(made: Experiment) -> dict[tuple[str, str, str], list[int]]:
    """Every total that is not empty, by names."""
    rows: Iterable[VariantTotal] = all_of(VariantTotal).filter(variant__experiment=made)
    return {
        (row.variant.name, row.metric, row.segment): row.moments
        for row in rows.select_related("variant")  # type: ignore[attr-defined]
        if any(row.moments)
    }
