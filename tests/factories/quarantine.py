"""Requests that are refused because engines died of them."""

from datetime import timedelta

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.engines.models import QuarantinedRequest
from tests.factories.access import TenantFactory


class QuarantinedRequestFactory(DjangoModelFactory[QuarantinedRequest]):
    class Meta:
        model = QuarantinedRequest

    tenant = factory.SubFactory(TenantFactory)
    digest = factory.Sequence(lambda n: f"{n:064x}")
    deployment_name = "tiny"
    request_id = factory.Sequence(lambda n: f"chatcmpl-{n:032x}")
    n_deaths = 2
    since = factory.LazyFunction(timezone.now)
    expires_at = factory.LazyFunction(lambda: timezone.now() + timedelta(days=1))
