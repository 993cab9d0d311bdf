"""Public model names."""

from typing import Any

import factory
from factory.django import DjangoModelFactory

from apps.routing.models import Route, RouteTarget
from tests.factories.deployments import DeploymentFactory


class RouteTargetFactory(DjangoModelFactory[RouteTarget]):
    class Meta:
        model = RouteTarget

    deployment = factory.SubFactory(DeploymentFactory)
    weight = 100


class RouteFactory(DjangoModelFactory[Route]):
    """Leads to one ``deployment``, which is on the instance afterwards; to none if that is None."""

    class Meta:
        model = Route

    name = factory.Sequence(lambda n: f"route-{n}")
    deployment = factory.SubFactory(DeploymentFactory)

    @classmethod
    def _create(cls, model_class: type[Route], *args: Any, **kwargs: Any) -> Route:
        deployment = kwargs.pop("deployment")
        route = model_class(*args, **kwargs)
        route.save()
        if deployment is not None:
            RouteTargetFactory(route=route, deployment=deployment)
        route.deployment = deployment  # type: ignore[attr-defined]
        return route
