"""``manage.py import_model SOURCE --name NAME``: bring a model into the registry."""

from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.types import SYSTEM
from apps.core.exceptions import AppError
from apps.registry.services import import_model
from apps.registry.types import AlreadyImported, ImportEvent, ImportProgress, SourceIdentified


class Command(BaseCommand):
    """Shows progress on standard error and the result on standard output."""

    help = "Import a model: a GGUF file, an archive that holds one, or a Hugging Face directory."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("source", type=Path, help="file or directory to import")
        parser.add_argument("--name", required=True, help="name in the registry, such as smollm2")
        parser.add_argument("--sha256", default="", help="what the source must have")

    def handle(self, *args: Any, **options: Any) -> None:
        self._already = False
        try:
            version = import_model(
                name=options["name"],
                source_path=options["source"],
                actor=SYSTEM,
                expected_sha256=options["sha256"],
                on_event=self._show,
            )
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        except AppError as error:
            where = f" ({error.param})" if error.param else ""
            raise CommandError(f"{error.message}{where}") from error
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
