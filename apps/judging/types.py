"""What the room hands to others."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypedDict

import msgspec

if TYPE_CHECKING:
    from apps.rbac.models import ApiToken
    from apps.routing.models import Route

JUDGES_STAMP: Final = "judges"
JUDGE_SCOPE: Final = "inference"  # that a token needs to ask a route
MAX_NAME_CHARS: Final = 40
MAX_RUBRIC_CHARS: Final = 8000
MOST_SCORE: Final = 100
MAX_REASON_CHARS: Final = 300
# What is kept of a conversation and of an answer: the end of the one, the beginning of the other.
MAX_ASKED_CHARS: Final = 16_000
MAX_ANSWER_CHARS: Final = 16_000
# What a turn takes of the room beside its text, so that ten thousand empty ones are not kept; and
# so many are looked at.
TURN_CHARS: Final = 40
MAX_TURNS: Final = MAX_ASKED_CHARS // TURN_CHARS + 1
MAX_ATTEMPTS: Final = 4
KEEP_AT_MOST: Final = timedelta(days=7)


class Turn(msgspec.Struct, frozen=True, array_like=True):
    role: str
    content: str


class JudgedText(msgspec.Struct, frozen=True, array_like=True):
    """What a judge reads. asked: the conversation as its client sent it, without what an experiment
    made of it, so that nothing tells the arms apart but the answers. is_cut: some of it is left
    out."""

    asked: tuple[Turn, ...]
    answer: str
    is_cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """A judge as processes that answer know it: whether it takes an answer is decided by its share,
    of a hash of the request's id."""

    judge_id: int
    name: str
    sample_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenSample:
    """A sample in a worker's hands, until ``due_at`` of its row passes. api_token_id: in whose name
    it asks. waited_s: since the answer was given."""

    pk: int
    attempt: int
    judge_id: int
    judge_name: str
    rubric: str
    lowest: int
    highest: int
    route_name: str
    api_token_id: int | None
    tenant_id: int
    request_id: str
    waited_s: float
    text: JudgedText = field(repr=False)


class JudgeFields(TypedDict, total=False):
    """What a person may set on a judge, by the names of its columns."""

    name: str
    rubric: str
    lowest: int
    highest: int
    route: "Route"
    api_token: "ApiToken | None"
    sample_percent: float
    per_day: int
    is_on: bool
