"""``manage.py import_model SOURCE --name NAME``: bring a model into the registry."""

from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from apps.audit.types import SYSTEM
from apps.registry.import_jobs import import_job_cancel, import_job_create
from apps.registry.import_running import import_claim, import_run, worker_name
from apps.registry.models import ImportJob, ModelVersion
from apps.registry.types import AlreadyImported, ImportEvent, ImportProgress, SourceIdentified


class Command(BaseCommand):
    """Shows progress on standard error and the result on standard output. It is a job as any other,
    run here: one that is killed is taken up by a worker."""

    help = "Import a model: a GGUF file, an archive that holds one, or a Hugging Face directory."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("source", type=Path, help="file or directory to import")
        parser.add_argument("--name", required=True, help="name in the registry, such as smollm2")
        parser.add_argument("--sha256", default="", help="what the source must have")

    def handle(self, *args: Any, **options: Any) -> None:
        self._already = False
        try:
            with transaction.atomic():  # no worker sees it before it is ours
                job = import_job_create(
                    model_name=options["name"],
                    kind=ImportJob.Kind.COMMAND,
                    source=str(options["source"].absolute()),
                    expected_sha256=options["sha256"],
                    actor=SYSTEM,
                )
                claim = import_claim(pk=job.pk, owner=worker_name())
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        assert claim is not None
        try:
            import_run(claim=claim, on_event=self._show)
        except KeyboardInterrupt:
            import_job_cancel(job=job, actor=SYSTEM)
            raise CommandError("Cancelled; nothing is left of it.") from None
        job.refresh_from_db()
        if job.status == ImportJob.Status.QUEUED:
            raise CommandError("Another import of this model is running; this one waits for it.")
        if job.model_version is None:
            where = f" ({job.error_param})" if job.error_param else ""
            raise CommandError(f"{job.error or job.get_status_display()}{where}")
        self._say(job.model_version)

    def _say(self, version: ModelVersion) -> None:
        how = "is already there as" if self._already else "imported as"
        self.stdout.write(
            f"{version.source} {how} {version}: {version.architecture}, "
            f"{version.n_parameters:,} parameters, {version.dtype}, "
            f"{version.size_bytes / 1e6:.0f} MB"
        )

    def _show(self, event: ImportEvent) -> None:
        match event:
            case SourceIdentified(name=name):
                self.stderr.write(f"Reading {name}")
            case ImportProgress(stage=stage, done=done, total=total):
                end = "\n" if done == total else "\r"
                self.stderr.write(f"  {stage} {100 * done // max(1, total):3d} %", ending=end)
                self.stderr.flush()
            case AlreadyImported():
                self._already = True
