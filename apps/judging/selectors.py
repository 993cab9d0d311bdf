"""Reads of judges."""

from collections.abc import Collection

from django.db.models import QuerySet

from apps.judging.models import Judge
from apps.judging.sampling import is_sampled as is_sampled
from apps.judging.sampling import judged_text as judged_text
from apps.judging.sampling import text_shortened as text_shortened
from apps.judging.types import Sampling


def judge_named(name: str) -> Judge | None:
    return judges_described().filter(name=name).first()


def judge_get(pk: int) -> Judge | None:
    return judges_described().filter(pk=pk).first()


def judges_described() -> "QuerySet[Judge]":
    return Judge.objects.select_related("route", "api_token__tenant").order_by("name")


def judge_names() -> list[str]:
    """Return the names of all that are on, in order."""
    return list(Judge.objects.filter(is_on=True).order_by("name").values_list("name", flat=True))


def samplings_of(names: Collection[str]) -> tuple[Sampling, ...]:
    """Return those of these that are on, in one query, or in none where there are no names."""
    if not names:
        return ()
    rows = Judge.objects.filter(name__in=names, is_on=True).order_by("pk")
    return tuple(
        Sampling(judge_id=pk, name=name, sample_percent=percent)
        for pk, name, percent in rows.values_list("pk", "name", "sample_percent")
    )
