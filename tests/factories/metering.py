"""Rows of the usage ledger: settled ones, unless ``open`` is asked for."""

from datetime import timedelta

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.metering.models import UsageRecord


class UsageRecordFactory(DjangoModelFactory[UsageRecord]):
    class Meta:
        model = UsageRecord

    class Params:
        open = factory.Trait(
            state="reserved",
            outcome="",
            finish_reason="",
            n_completion_tokens=0,
            ttft_ms=None,
            total_ms=None,
            settled_at=None,
        )

    request_id = factory.Sequence(lambda n: f"req-{n:032x}")
    tenant_id = 1
    door = "rest"
    endpoint = "chat.completions"
    route_name = "smollm2-135m-instruct"
    deployment_id = 1
    model_version_id = 1
    engine_name = "smollm2/0"
    engine_epoch = 1
    state = "settled"
    outcome = "completed"
    finish_reason = "stop"
    n_prompt_tokens = 30
    n_reserved_tokens = 286
    n_cached_tokens = 16
    n_completion_tokens = 50
    ttft_ms = 120.0
    total_ms = 900.0
    created_at = factory.LazyFunction(timezone.now)
    expires_at = factory.LazyAttribute(lambda row: row.created_at + timedelta(minutes=15))
    settled_at = factory.LazyAttribute(lambda row: row.created_at + timedelta(seconds=1))
