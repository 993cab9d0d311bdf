"""What the objects of the management API have in common."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Meta

MAX_PAGE: Final = 100
MAX_INT: Final = 2**31 - 1
END: Final = r"$(?!\n)"  # of a pattern: Python's alone allows one more newline

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Limit = Annotated[int, Meta(ge=1, le=MAX_PAGE)]


class PageQuery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``after``: the last id of the page before."""

    limit: Limit = 20
    after: Name | None = None


class ManagedPage(msgspec.Struct, kw_only=True):
    object: str = "list"
    data: tuple[Any, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Gone(msgspec.Struct, kw_only=True):
    """What was deleted."""

    id: str
    object: str
    deleted: bool = True


P = TypeVar("P", bound=ManagedPage)


def page(kind: type[P], rows: list[Any], *, limit: int, show: Callable[[Any], Any]) -> P:
    """One page of rows of which there may be one more than ``limit``."""
    data = tuple(show(row) for row in rows[:limit])
    return kind(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(rows) > limit,
    )


def given(body: msgspec.Struct) -> dict[str, Any]:
    """Return the fields that a body names, those that it leaves out left out."""
    return {
        name: value
        for name in body.__struct_fields__
        if (value := getattr(body, name)) is not UNSET
    }


def seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def seconds_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def version_id(version: Any) -> str:
    """Return ``NAME:NUMBER``, by which commands know a version too."""
    return f"{version.model.name}:{version.version}"


def version_id_or_none(version: Any) -> str | None:
    return None if version is None else version_id(version)
