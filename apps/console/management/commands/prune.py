"""``manage.py prune``: clear away what is over. The ledger and the audit trail always stay."""

from typing import Any, Final

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.types import SYSTEM
from apps.console.options import FieldOption, options_add, options_read, refusals, whole_number
from apps.console.pruning import platform_prune


def _days(text: str) -> int:
    days = whole_number(text)
    if not 1 <= days <= 36_500:
        raise ValueError(f"{text!r} is not a number of days from 1 to 36500")
    return days


_KEEP_DAYS: Final = FieldOption(
    field="keep_days",
    help=f"what was over for so many days goes (PRUNE_KEEP_DAYS: {settings.PRUNE_KEEP_DAYS})",
    metavar="DAYS",
    parse=_days,
)


class Command(BaseCommand):
    help = (
        "Remove what is over: meters of past days and months, sessions, files past their time, "
        "what broken imports left, old logs. The ledger and the audit trail stay."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only say what would go")
        options_add(parser, (_KEEP_DAYS,))

    def handle(self, *args: Any, **options: Any) -> None:
        is_dry = options["dry_run"]
        keep_days = options_read((_KEEP_DAYS,), options).get("keep_days")
        with refusals({}):
            found = platform_prune(actor=SYSTEM, is_dry=is_dry, keep_days=keep_days)
        for each in found:
            verb = "would remove" if is_dry else "removed"
            self.stdout.write(f"{verb} {each.n} {each.says}")
        if failed := [f"{each.name}: {each.error}" for each in found if each.error]:
            raise CommandError("; ".join(failed))
