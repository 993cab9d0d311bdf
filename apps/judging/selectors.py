"""Reads of judges."""

from collections.abc import Collection

from django.db.models import Count, QuerySet

from apps.core.exceptions import AuthenticationFailed
from apps.core.tenancy import every_tenant
from apps.judging.models import AnswerSample, Judge
from apps.judging.sampling import is_sampled as is_sampled
from apps.judging.sampling import judged_text as judged_text
from apps.judging.sampling import text_shortened as text_shortened
from apps.judging.types import JUDGE_SCOPE, Sampling
from apps.metering.selectors import scopes_of
from apps.rbac.selectors import principal_of_token
from apps.rbac.types import Principal
from apps.routing.types import RoutingSnapshot


def judge_named(name: str) -> Judge | None:
    return judges_described().filter(name=name).first()


def judge_get(pk: int) -> Judge | None:
    return judges_described().filter(pk=pk).first()


def judges_described() -> "QuerySet[Judge]":
    return Judge.objects.select_related("route", "api_token__tenant").order_by("name")


def judges_by_name(names: Collection[str]) -> dict[str, Judge]:
    """Return those of these that there are, with their routes, in one query, or in none."""
    rows = Judge.objects.filter(name__in=names).select_related("route") if names else ()
    return {row.name: row for row in rows}


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


@every_tenant("how many wait is told, and not whose")
def samples_waiting(judge_ids: Collection[int] | None) -> dict[int, int]:
    """Return how many answers wait for each of these judges, or of all, in one query; those for
    whom none does are left out."""
    rows = AnswerSample.objects.all()
    if judge_ids is not None:
        rows = rows.filter(judge__in=judge_ids)
    return dict(rows.order_by().values_list("judge_id").annotate(n=Count("pk")))


# -- whether one could score -------------------------------------------------------------------


def token_problem(token_id: int) -> str | None:
    """Return why no judge can ask with a token now; None where one can."""
    found = _principal_or_problem(token_id)
    return found if isinstance(found, str) else None


def judge_problem(judge: Judge, *, routing: RoutingSnapshot) -> str | None:
    """Return why a judge could score nothing now; None where it could. routing: of this moment."""
    if not judge.is_on:
        return f"The judge {judge} is switched off."
    if judge.api_token_id is None:
        return f"The judge {judge} has no API token to ask with."
    principal = _principal_or_problem(judge.api_token_id)
    if isinstance(principal, str):
        return f"The API token of the judge {judge}: {principal}"
    model = routing.routes.get(judge.route.name)
    if model is None:
        return f"{judge.route}, which the judge {judge} asks, is switched off."
    is_allowed = all(each.allows(model.name) for each in scopes_of(principal))
    if not (is_allowed and model.is_for(principal)):
        return f"The API token of the judge {judge} may not use {judge.route}, which it asks."
    if not routing.is_ready(model):
        return f"Nothing that {judge.route} leads to, which the judge {judge} asks, is ready."
    return None


def _principal_or_problem(token_id: int) -> Principal | str:
    try:
        principal = principal_of_token(token_id)
    except AuthenticationFailed as error:
        return error.message
    if JUDGE_SCOPE not in principal.scopes:
        return f"It is not, or no more, for {JUDGE_SCOPE}."
    return principal
