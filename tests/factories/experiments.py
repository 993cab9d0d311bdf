"""Experiments, their arms and layers."""

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.experiments.assigning import N_SLOTS
from apps.experiments.models import Assignment, Experiment, ExperimentMetric, Layer, Variant
from tests.factories.routing import RouteFactory


class LayerFactory(DjangoModelFactory[Layer]):
    class Meta:
        model = Layer

    name = factory.Sequence(lambda n: f"layer-{n}")
    salt = factory.Sequence(lambda n: f"{n:032x}")


class ExperimentFactory(DjangoModelFactory[Experiment]):
    """A draft without arms; ``running`` holds its whole layer."""

    class Meta:
        model = Experiment

    class Params:
        running = factory.Trait(
            state=Experiment.State.RUNNING,
            started_at=factory.LazyFunction(timezone.now),
            weights_set_at=factory.SelfAttribute("started_at"),
            slots=[[0, N_SLOTS]],
        )
        stopped = factory.Trait(
            state=Experiment.State.STOPPED,
            started_at=factory.LazyFunction(timezone.now),
            stopped_at=factory.LazyFunction(timezone.now),
            stopped_because="It is enough.",
        )

    name = factory.Sequence(lambda n: f"experiment-{n}")
    route = factory.SubFactory(RouteFactory)
    layer = factory.SubFactory(LayerFactory)
    salt = factory.Sequence(lambda n: f"{n:032x}")


class VariantFactory(DjangoModelFactory[Variant]):
    class Meta:
        model = Variant

    experiment = factory.SubFactory(ExperimentFactory)
    name = factory.Sequence(lambda n: f"variant-{n}")


class ExperimentMetricFactory(DjangoModelFactory[ExperimentMetric]):
    class Meta:
        model = ExperimentMetric

    experiment = factory.SubFactory(ExperimentFactory)
    metric = "latency"
    role = ExperimentMetric.Role.PRIMARY
    better = ExperimentMetric.Better.LOWER


class AssignmentFactory(DjangoModelFactory[Assignment]):
    """Give it ``variant``; its experiment is that one's."""

    class Meta:
        model = Assignment

    variant = factory.SubFactory(VariantFactory)
    experiment = factory.SelfAttribute("variant.experiment")
    subject = factory.Sequence(lambda n: f"{n:016x}")
    tenant_id = 1
    door = "rest"
    first_seen_at = factory.LazyFunction(timezone.now)
    last_seen_at = factory.SelfAttribute("first_seen_at")
    n_requests = 1
