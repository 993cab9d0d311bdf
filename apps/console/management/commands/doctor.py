"""``manage.py doctor``: what is wrong, and what to do about it."""

import json
import logging
from dataclasses import asdict
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.console.doctor.checks import findings_now
from apps.console.doctor.findings import Finding, worst

_MARKS: Final = {"ok": "ok     ", "warning": "WARNING", "failure": "FAILURE"}


class Command(BaseCommand):
    help = (
        "Look at the database, cache, broker, engines, models, disks, clock, versions and secrets, "
        "and say what to do about what is wrong. Changes nothing; exit status 1 on a failure."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="for programs")

    def handle(self, *args: Any, **options: Any) -> None:
        logging.disable(logging.CRITICAL)  # what others have to say is said by the findings
        try:
            findings = findings_now()
        finally:
            logging.disable(logging.NOTSET)
        if options["json"]:
            report = {"status": worst(findings), "findings": [asdict(each) for each in findings]}
            self.stdout.write(json.dumps(report, indent=2))
        else:
            self._print(findings)
        if n_failures := sum(each.status == "failure" for each in findings):
            raise CommandError(f"{n_failures} of {len(findings)} findings are failures")

    def _print(self, findings: tuple[Finding, ...]) -> None:
        width = max(len(each.name) for each in findings)
        for each in findings:
            self.stdout.write(f"{_MARKS[each.status]}  {each.name:{width}}  {each.seen}")
            if each.remedy:
                self.stdout.write(f"{'':{len(_MARKS['ok'])}}  {'':{width}}  → {each.remedy}")
