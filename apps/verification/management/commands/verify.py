"""``manage.py verify NAME[:VERSION]``: whether a version does what it has to, and how well."""

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.types import SYSTEM
from apps.core.exceptions import AppError
from apps.registry.selectors import figure_lines, model_version_named, verification_get
from apps.registry.services import verification_ask, verification_cancel
from apps.registry.types import VerificationStatus, VerificationStep
from apps.verification.worker import run_next

if TYPE_CHECKING:
    from apps.registry.models import ModelVersion, VerificationRun

_LOOK_S: Final = 0.5


class Command(BaseCommand):
    """Progress on standard error, figures on standard output; exit status 1 where it fails."""

    help = (
        "Verify a version of a model: its files, answers, perplexity and latency, in an engine of "
        "its own. A draft that passes becomes verified."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("version", help="NAME, for its newest version, or NAME:NUMBER")
        parser.add_argument(
            "--queue", action="store_true", help="leave it to the worker, and return at once"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        version = model_version_named(options["version"])
        if version is None:
            raise CommandError(f"VERSION: there is no version {options['version']!r}")
        run = self._run_of(version, is_queued=options["queue"])
        if options["queue"]:
            self.stdout.write(f"Verification #{run.pk} of {version} waits for the worker.")
            return
        self._shown: tuple[str, int] = ("", -1)
        try:
            if not asyncio.run(run_next(run_id=run.pk, on_progress=self._show)):
                self._follow(run)
        except KeyboardInterrupt:
            verification_cancel(run=run, actor=SYSTEM)
            raise CommandError(f"Verification #{run.pk} is cancelled.") from None
        self._report(verification_get(run.pk))

    def _run_of(self, version: "ModelVersion", *, is_queued: bool) -> "VerificationRun":
        try:
            return verification_ask(version=version, actor=SYSTEM, is_waking=is_queued)
        except AppError as error:
            raise CommandError(f"VERSION: {error.message}") from error

    def _follow(self, run: "VerificationRun") -> None:
        """A worker was quicker: look on."""
        while (row := verification_get(run.pk)).is_open:
            if row.step:
                self._show(VerificationStep(row.step), row.percent)
            time.sleep(_LOOK_S)

    def _show(self, step: VerificationStep, percent: int) -> None:
        if (step.value, percent // 10) != self._shown:
            self._shown = (step.value, percent // 10)
            self.stderr.write(f"{step.label} {percent:3d} %")

    def _report(self, run: "VerificationRun") -> None:
        for check in run.checks:
            mark = "ok     " if check["is_passed"] else "FAILURE"
            self.stdout.write(f"{mark}  {check['name']}: {check['said']}")
        for line in figure_lines(run.figures):
            self.stdout.write(line)
        if run.status != VerificationStatus.PASSED:
            raise CommandError(f"{run.version} {run.status}: {run.error}")
        self.stdout.write(f"{run.version} passed; it is {run.version.stage}.")
