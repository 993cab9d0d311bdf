"""Who acts."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """``id`` is the user's or token's; the label is kept even when they are gone."""

    kind: Literal["user", "token", "system"]
    label: str
    id: int | None = None
    ip_address: str | None = None


SYSTEM = Actor(kind="system", label="system")
