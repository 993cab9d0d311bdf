"""Rollouts as rows only: what a service would have done to their routes was not done."""

from typing import Any

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.rollouts.models import Rollout
from apps.routing.models import Route
from tests.factories.access import UserFactory
from tests.factories.deployments import DeploymentFactory
from tests.factories.routing import RouteFactory

STEPS: list[dict[str, Any]] = [
    {"percent": 10.0, "min_requests": 100, "min_minutes": 5.0},
    {"percent": 100.0, "min_requests": 0, "min_minutes": 0.0},
]


class RolloutFactory(DjangoModelFactory[Rollout]):
    """One that has ended; with ``open`` one that runs, and holds its route."""

    class Meta:
        model = Rollout
        skip_postgeneration_save = True

    class Params:
        open = factory.Trait(state="running", ended_at=None)

    route = factory.SubFactory(RouteFactory)
    route_name = factory.SelfAttribute("route.name")
    baseline = factory.SelfAttribute("route.deployment")
    baseline_name = factory.SelfAttribute("baseline.name")
    candidate = factory.SubFactory(DeploymentFactory)
    candidate_name = factory.SelfAttribute("candidate.name")
    state = "completed"
    steps = factory.LazyFunction(lambda: [dict(each) for each in STEPS])
    guardrails = factory.LazyFunction(lambda: [{"metric": "error_rate", "tolerance": 0.01}])
    step_started_at = factory.LazyFunction(timezone.now)
    ended_at = factory.LazyFunction(timezone.now)
    targets_before = factory.LazyAttribute(
        lambda made: [] if made.baseline is None else [[made.baseline.pk, 100, None]]
    )
    started_by = factory.SubFactory(UserFactory)
    started_by_name = factory.SelfAttribute("started_by.username")

    @factory.post_generation
    def held(self, create: bool, extracted: object, **kwargs: object) -> None:
        if create and self.ended_at is None and self.route is not None:
            Route.objects.filter(pk=self.route.pk).update(held_by=f"rollout {self.pk}")
