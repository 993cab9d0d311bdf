"""Judges, and answers that wait for them."""

from typing import Any

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.judging.models import AnswerSample, Judge
from apps.judging.sampling import judged_text, text_sealed
from apps.judging.types import Turn
from tests.factories.access import ApiTokenFactory
from tests.factories.routing import RouteFactory


class JudgeFactory(DjangoModelFactory[Judge]):
    """On, with a token, and nothing taken yet."""

    class Meta:
        model = Judge

    name = factory.Sequence(lambda n: f"judge-{n}")
    rubric = "5: answers what was asked. 1: answers something else."
    route = factory.SubFactory(RouteFactory)
    api_token = factory.SubFactory(ApiTokenFactory)


class AnswerSampleFactory(DjangoModelFactory[AnswerSample]):
    """Due now. ``asked`` and ``answer`` may be given in the clear."""

    class Meta:
        model = AnswerSample

    judge = factory.SubFactory(JudgeFactory)
    tenant_id = 1
    request_id = factory.Sequence(lambda n: f"chatcmpl-sample-{n}")
    created_at = factory.LazyFunction(timezone.now)
    due_at = factory.SelfAttribute("created_at")

    @classmethod
    def _create(cls, model_class: type[AnswerSample], *args: Any, **kwargs: Any) -> AnswerSample:
        asked, answer = kwargs.pop("asked", "Hello?"), kwargs.pop("answer", "Hello.")
        text = judged_text([Turn(role="user", content=asked)], answer)
        row = model_class(*args, sealed=text_sealed(text), **kwargs)
        row.save()
        return row
