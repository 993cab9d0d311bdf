"""What was said of answers: thumbs up, unless something else is asked for."""

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.feedback.models import MetricEvent
from apps.feedback.types import FEEDBACK


class MetricEventFactory(DjangoModelFactory[MetricEvent]):
    class Meta:
        model = MetricEvent

    tenant_id = 1
    request_id = factory.Sequence(lambda n: f"said-{n:032x}")
    name = FEEDBACK
    value = 1.0
    created_at = factory.LazyFunction(timezone.now)
