"""How an engine did over a span of time."""

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.engines.models import EngineSample


class EngineSampleFactory(DjangoModelFactory[EngineSample]):
    class Meta:
        model = EngineSample

    engine_name = "m-0"
    span_s = 10
    at = factory.LazyFunction(timezone.now)
    n_running = 1.0
    n_waiting = 0.0
    prompt_tokens_per_s = 0.0
    completion_tokens_per_s = 10.0
    rss_bytes = 2**20
    kv_used = 0.5
    n_requests = 0
