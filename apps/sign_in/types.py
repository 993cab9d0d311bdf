"""What other rooms are told of a session and of a second factor."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

Factor = Literal["totp", "backup_code"]


class Standing(Enum):
    """What a session may do. COMPLETE: all that its person may. MUST_ENROL: enrol a second factor
    and nothing else. OVER: nothing."""

    COMPLETE = "complete"
    MUST_ENROL = "must_enrol"
    OVER = "over"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInFacts:
    """What the database says of a person. device_id: their confirmed authenticator."""

    epoch: int
    device_id: int | None
    is_required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentDraft:
    """A secret that is not in force yet, as a person's app takes it. qr_svg: markup made here."""

    secret: str = field(repr=False)
    url: str = field(repr=False)
    qr_svg: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeVerdict:
    """factor: what the code was of; None when it is wrong. wait_s: it was not even looked at,
    because of wrong ones before it."""

    factor: Factor | None = None
    wait_s: float = 0.0
