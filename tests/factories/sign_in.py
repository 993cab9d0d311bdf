"""Failed attempts to sign in."""

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.sign_in.models import FailedSignIn


class FailedSignInFactory(DjangoModelFactory[FailedSignIn]):
    """One attempt of now, each with another name."""

    class Meta:
        model = FailedSignIn

    username = factory.Sequence(lambda n: f"name{n}")
    ip_address = "192.0.2.7"
    user_agent = "a browser"
    attempt_time = factory.LazyFunction(timezone.now)
    failures_since_start = 1
