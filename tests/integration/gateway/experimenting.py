"""An experiment on the route of the gateway's tests, and who is in which of its arms."""

from collections.abc import Mapping
from typing import Any

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.experiments.assigning import subject_digest, variant_of
from apps.experiments.models import Experiment, Variant
from apps.experiments.services import experiment_create, experiment_start
from apps.experiments.types import MetricSpec, VariantSpec, arms_read
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken
from apps.routing.models import Route
from tests.integration.gateway.conftest import MODEL

CHAT = "/v1/chat/completions"
LATENCY = MetricSpec(metric="latency", role="primary", better="lower")


def running(*variants: VariantSpec, **fields: Any) -> Experiment:
    """Start an experiment on the route; without variants both arms are as the route is."""
    arms = variants or (VariantSpec(name="b"),)
    draft = experiment_create(
        actor=SYSTEM,
        route=Route.objects.get(name=MODEL),
        variants=[VariantSpec(name="control", is_control=True), *arms],
        **{"name": "trial", "metrics": [LATENCY], **fields},
    )
    return experiment_start(experiment=draft, seen=draft.version, actor=SYSTEM)


async def user_in(experiment: Experiment, name: str, token: ApiToken) -> str:
    """Return an end user who is in that arm."""
    return await user_of({experiment: name}, token)


async def user_of(arms: Mapping[Experiment, str], token: ApiToken) -> str:
    """Return an end user who is in that arm of each experiment."""
    for number in range(1000):
        user = f"user-{number}"
        if all([await _name_of_arm(each, user, token) == name for each, name in arms.items()]):
            return user
    raise AssertionError("nobody is in those arms")


async def _name_of_arm(experiment: Experiment, user: str, token: ApiToken) -> str:
    names = await database_hop(lambda: dict(experiment.variants.values_list("pk", "name")))
    weights = await database_hop(lambda: dict(experiment.variants.values_list("pk", "weight")))
    subject = subject_digest(
        salt=experiment.salt, kind="end_user", tenant_id=token.tenant_id, identifier=user
    )
    return str(names[variant_of(salt=experiment.salt, subject=subject, weights=weights)])


async def arm(row: UsageRecord) -> str:
    """Return the name of the one arm of a row; empty where it takes part in nothing."""
    arms = arms_read(row.experiment_arm)
    if not arms:
        return ""
    (only,) = arms
    return (await database_hop(Variant.objects.get, pk=only.variant_id)).name
