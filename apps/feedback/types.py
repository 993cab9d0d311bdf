"""What is said of answers, as other rooms read and write it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal

from apps.rbac.types import Principal

FEEDBACK: Final = "feedback"  # the name of what thumbs say
JUDGE_PREFIX: Final = "judge:"  # of names that a judge gives; programs cannot report by them
MOST_VALUE: Final = 1e12  # either way, so that sums in millionths stay whole numbers
MAX_COMMENT_CHARS: Final = 1000
MAX_NAME_CHARS: Final = 64
MAX_EVENT_ID_CHARS: Final = 120
MAX_END_USER_CHARS: Final = 512

# Who counts what is reported: experiments, or the rollout of a route.
Comparison = Literal["experiment", "rollout"]


class Rating(StrEnum):
    UP = "up"
    DOWN = "down"

    @property
    def value_counted(self) -> float:
        return 1.0 if self is Rating.UP else 0.0

    @classmethod
    def of(cls, value: float) -> "Rating":
        return cls.UP if value else cls.DOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Teller:
    """Who says it: in which tenant, and by which token or person."""

    tenant_id: int
    api_token_id: int | None = None
    user_id: int | None = None

    @classmethod
    def of(cls, principal: Principal) -> "Teller":
        return cls(
            tenant_id=principal.tenant_id,
            api_token_id=principal.api_token_id,
            user_id=principal.user_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What was said. request_id: of the row in the ledger that answered; empty where it is of an
    end user. created_at: when it happened, which is not when it was told where a client says so."""

    id: int
    name: str
    value: float
    request_id: str
    end_user: str
    comment: str
    event_id: str
    created_at: datetime

    @property
    def rating(self) -> Rating | None:
        """None of what is no feedback."""
        return Rating.of(self.value) if self.name == FEEDBACK else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedEvent:
    """An event that is to be counted. previous: what was counted of it before, whose place its
    value takes; None where it is new. arm: as its request's row in the ledger has it; empty where
    it names an end user and no request, and whoever counts finds out."""

    name: str
    value: float
    previous: float | None
    arm: str
    tenant_id: int
    request_id: str
    end_user: str
    created_at: datetime
