"""``manage.py reconcile``: whether the ledger, the budgets and the roll-ups agree."""

import json
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone

from apps.audit.types import Actor
from apps.metering.selectors import ledger_findings, reconciled_since
from apps.metering.services import ledger_correct
from apps.metering.types import Finding

_ACTOR = Actor(kind="system", label="manage.py reconcile")


class Command(BaseCommand):
    help = "Compare the ledger with budgets and roll-ups; the exit status is 1 where they differ."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--since",
            type=_day,
            help="first day of UTC to look at, such as 2026-01-31 (default: the first of last "
            "month)",
        )
        parser.add_argument("--json", action="store_true", help="write one JSON object")
        parser.add_argument(
            "--fix", action="store_true", help="close what can be closed safely, then look again"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        since = options["since"] or reconciled_since(now)
        found, n_corrected = ledger_findings(since=since, now=now), 0
        if options["fix"] and found:
            n_corrected = ledger_correct(found, now=now, actor=_ACTOR)
            found = ledger_findings(since=since, now=timezone.now())
        if options["json"]:
            self.stdout.write(json.dumps(_plain(found, since=since, n_corrected=n_corrected)))
        else:
            self._say(found, since=since, n_corrected=n_corrected)
        if found:
            sys.exit(1)

    def _say(self, found: Sequence[Finding], *, since: datetime, n_corrected: int) -> None:
        for finding in found:
            self.stdout.write(f"{finding.kind}: {finding.said}")
            self.stdout.write(f"    {', '.join(finding.request_ids) or 'no request'}")
        if n_corrected:
            self.stdout.write(f"Corrected: {n_corrected}.")
        left = f"{len(found)} findings" if found else "The ledger agrees with itself"
        self.stdout.write(f"{left} since {since:%Y-%m-%d}.")


def _plain(found: Sequence[Finding], *, since: datetime, n_corrected: int) -> dict[str, Any]:
    return {
        "since": since.isoformat(),
        "n_corrected": n_corrected,
        "findings": [
            {
                "kind": finding.kind.value,
                "said": finding.said,
                "request_ids": list(finding.request_ids),
                "is_correctable": finding.is_correctable,
            }
            for finding in found
        ],
    }


def _day(text: str) -> datetime:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a day such as 2026-01-31") from None
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
