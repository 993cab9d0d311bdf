"""What other rooms are told of a session and of a second factor."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

# Who checked the second factor: a device of ours, or the single sign-on provider.
Factor = Literal["totp", "backup_code", "provider"]


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
class ProviderFlow:
    """What somebody is sent to the single sign-on provider for. next: the page of ours to open
    afterwards. linking: the id of the person, already signed in, whose account it becomes; None to
    sign in."""

    next: str
    linking: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderPerson:
    """What the single sign-on provider says of whoever just signed in there, checked.

    name: what they would be called here. email: empty unless the provider verified it. groups: all
    of theirs; empty where the provider knows none. has_second_factor: it checked one, and that
    counts here. id_token: as it came, to sign out there.
    """

    issuer: str
    subject: str
    name: str
    email: str
    groups: frozenset[str]
    has_second_factor: bool
    id_token: str = field(repr=False)


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
