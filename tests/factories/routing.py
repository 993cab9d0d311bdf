"""Public model names."""

import factory
from factory.django import DjangoModelFactory

from apps.routing.models import Route
from tests.factories.deployments import DeploymentFactory


class RouteFactory(DjangoModelFactory[Route]):
    class Meta:
        model = Route

    name = factory.Sequence(lambda n: f"route-{n}")
    deployment = factory.SubFactory(DeploymentFactory)
