"""What commands of operators share: options that set fields of a model, and refusals in one line
that names the argument."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError, InterfaceError, models

from apps.core.exceptions import AppError
from apps.core.limits import LIMIT_NAMES, LimitFields

_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION: Final = re.compile(r"([1-9][0-9]{0,6})([mhdw])")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldOption:
    """An option that sets one field. parse: turns what was typed into the field's value; raises
    ValueError, whose text is for the operator. is_list: it takes one word or more."""

    field: str
    help: str
    metavar: str = "N"
    parse: Callable[[Any], Any] = str
    is_list: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.field.replace("_", "-")


def options_add(parser: CommandParser, options: Sequence[FieldOption]) -> None:
    """Add the options; what is typed is parsed by ``options_read``, so that what is wrong with it
    is said as any other refusal is."""
    for option in options:
        parser.add_argument(
            option.flag,
            help=option.help,
            metavar=option.metavar,
            dest=option.field,
            nargs="+" if option.is_list else None,
        )


def options_read(options: Sequence[FieldOption], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return field → value for the options that were given.

    Raises:
        CommandError: one cannot be read; names it.
    """
    found = {}
    for option in options:
        typed = given.get(option.field)
        if typed is None:
            continue
        try:
            found[option.field] = option.parse(typed)
        except ValueError as error:
            raise CommandError(f"{option.flag}: {error}") from None
    return found


@contextlib.contextmanager
def refusals(arguments: Mapping[str, str]) -> Iterator[None]:
    """Say what a service refuses in one line. arguments: field → what the operator calls it, where
    that is not the field's own option."""

    def flag(field: str) -> str:
        return arguments.get(field) or FieldOption(field=field, help="").flag

    try:
        yield
    except ValidationError as error:
        if not hasattr(error, "error_dict"):
            raise CommandError("; ".join(error.messages)) from error
        lines = [
            f"{flag(field)}: {' '.join(messages)}" for field, messages in error.message_dict.items()
        ]
        raise CommandError("; ".join(lines)) from error
    except AppError as error:
        where = f"{flag(error.param)}: " if error.param else ""
        raise CommandError(f"{where}{error.message}") from error
    except (DatabaseError, InterfaceError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise CommandError(f"the database: {said[0]}") from error


def whole_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def duration(text: str) -> timedelta:
    """Return what ``30m``, ``12h``, ``90d`` or ``2w`` says."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a duration such as 30m, 12h, 90d or 2w")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _limit_option(name: str) -> FieldOption:
    field = LimitFields._meta.get_field(name)
    said = str(field.help_text) if isinstance(field, models.Field) else ""
    if name == "allowed_routes":
        return FieldOption(
            field=name,
            help="names of models; all of them if not given",
            metavar="MODEL",
            parse="\n".join,
            is_list=True,
        )
    help_text = f"limit. {said}".strip() if said else "limit"
    return FieldOption(field=name, help=help_text, parse=whole_number)


LIMIT_OPTIONS: Final = tuple(_limit_option(name) for name in LIMIT_NAMES)
