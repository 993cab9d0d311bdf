"""Judges on the wire."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from apps.management.wire.common import END, ManagedPage, seconds
from apps.management.wire.routes import RouteName

if TYPE_CHECKING:
    from apps.judging.models import Judge

JudgeName = Annotated[str, Meta(min_length=1, max_length=40, pattern=rf"^[A-Za-z0-9_-]+{END}")]
Rubric = Annotated[str, Meta(min_length=1, max_length=8000)]
Score = Annotated[int, Meta(ge=0, le=100)]
TokenId = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Percent = Annotated[float, Meta(ge=0.01, le=100)]
PerDay = Annotated[int, Meta(ge=1, le=1_000_000)]


class JudgeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``rubric``: what makes an answer good, and what each score from ``lowest`` to ``highest``
    means. ``route``: the model that scores. ``api_token``: by its number, in whose name it asks;
    its tenant pays. ``sample_percent``: of the answers that could be scored; ``per_day``: no more
    than so many."""

    name: JudgeName
    rubric: Rubric
    route: RouteName
    lowest: Score = 1
    highest: Score = 5
    api_token: TokenId | None = None
    sample_percent: Percent = 100.0
    per_day: PerDay = 1000
    is_on: bool = True


class JudgeChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is left out stays. Once an answer was taken, only ``api_token``, ``per_day`` and
    ``is_on`` change."""

    name: JudgeName | UnsetType = UNSET
    rubric: Rubric | UnsetType = UNSET
    route: RouteName | UnsetType = UNSET
    lowest: Score | UnsetType = UNSET
    highest: Score | UnsetType = UNSET
    api_token: TokenId | UnsetType | None = UNSET
    sample_percent: Percent | UnsetType = UNSET
    per_day: PerDay | UnsetType = UNSET
    is_on: bool | UnsetType = UNSET


class JudgeObject(msgspec.Struct, kw_only=True):
    """``n_taken``: answers that were kept for it; of those it has scored ``n_scored``, ``n_failed``
    stay without a score, and ``n_waiting`` wait."""

    id: str
    object: str = "judge"
    created_at: int
    updated_at: int
    version: int
    rubric: str
    lowest: int
    highest: int
    route: str
    api_token: int | None
    sample_percent: float
    per_day: int
    is_on: bool
    n_taken: int
    n_scored: int
    n_failed: int
    n_waiting: int
    last_problem: str


class JudgePage(ManagedPage, kw_only=True):
    data: tuple[JudgeObject, ...]


def judge_object(row: "Judge", waiting: Mapping[int, int]) -> JudgeObject:
    """row: with its route; no query. waiting: how many do, by judge."""
    return JudgeObject(
        id=row.name,
        created_at=seconds(row.created_at),
        updated_at=seconds(row.updated_at),
        version=row.version,
        rubric=row.rubric,
        lowest=row.lowest,
        highest=row.highest,
        route=row.route.name,
        api_token=row.api_token_id,
        sample_percent=row.sample_percent,
        per_day=row.per_day,
        is_on=row.is_on,
        n_taken=row.n_taken,
        n_scored=row.n_scored,
        n_failed=row.n_failed,
        n_waiting=waiting.get(row.pk, 0),
        last_problem=row.last_problem,
    )
