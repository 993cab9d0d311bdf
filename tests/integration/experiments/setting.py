"""An experiment as people make one: its parts, ready to start."""

from typing import Any

from apps.audit.types import Actor
from apps.deployments.models import Deployment
from apps.experiments.models import Experiment
from apps.experiments.selectors import variants_of
from apps.experiments.services import experiment_create, experiment_start
from apps.experiments.types import MetricSpec, VariantSpec
from apps.routing.models import Route
from tests.factories import DeploymentFactory, ReplicaFactory, RouteFactory

LATENCY = MetricSpec(metric="latency", role="primary", better="lower")


def ready(name: str, **fields: Any) -> Deployment:
    """Return a deployment with one replica that takes requests."""
    deployment: Deployment = DeploymentFactory(name=name, **fields)
    ReplicaFactory(deployment=deployment, index=0)
    return deployment


def route_ready(name: str = "chat") -> Route:
    route: Route = RouteFactory(name=name, deployment=ready(f"{name}-old"))
    return route


def two_arms(deployment: Deployment | None = None, **fields: Any) -> list[VariantSpec]:
    """Return a control and a variant ``b``, which leads to the deployment or has these fields."""
    if deployment is not None:
        fields["deployment"] = deployment
    return [VariantSpec(name="control", is_control=True), VariantSpec(name="b", **fields)]


def drafted(actor: Actor, route: Route, **fields: Any) -> Experiment:
    """Return a draft that could start; by default ``b`` has another temperature."""
    fields.setdefault("name", "cooler")
    fields.setdefault("variants", two_arms(parameters={"temperature": 0.2}))
    fields.setdefault("metrics", [LATENCY])
    return experiment_create(actor=actor, route=route, **fields)


def started(actor: Actor, experiment: Experiment) -> Experiment:
    return experiment_start(experiment=experiment, seen=experiment.version, actor=actor)


def stored(experiment: Experiment) -> dict[str, Any]:
    row = Experiment.objects.filter(pk=experiment.pk).values().get()
    del row["updated_at"]
    return row | {"arms": variants_of(experiment)}
