"""``manage.py backup PATH``: everything that an installation cannot be made anew from."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.services import event_record
from apps.audit.types import SYSTEM
from apps.console.backup.archive import BackupError, Manifest
from apps.console.backup.installation import installation_here
from apps.console.backup.making import backup_make
from apps.console.backup.restoring import backup_verify
from apps.console.options import refusals
from apps.registry.selectors import remote_storage


class Command(BaseCommand):
    help = (
        "Write the database, the secret key, the models and stored files to one archive, also "
        "while everything runs. Whoever has it has every secret of this installation."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("path", type=Path, help="file to write, such as nano-llm.tar.gz")
        parser.add_argument("--without-models", action="store_true", help="leave the models out")
        parser.add_argument(
            "--verify", action="store_true", help="write nothing; check the archive at PATH"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["path"].absolute()
        try:
            if options["verify"]:
                self._say("is whole", path, backup_verify(path))
                return
            with_models = not options["without_models"]
            if with_models and (storage := remote_storage()) is not None:
                with_models = False
                self.stderr.write(
                    f"The models are in {storage} and stay there: none is in this file."
                )
            with refusals({}):
                manifest = backup_make(
                    target=path,
                    source=installation_here(),
                    with_models=with_models,
                    report=self.stderr.write,
                )
                event_record(
                    action="platform.backed_up",
                    actor=SYSTEM,
                    changes={"file": path.name, "parts": list(manifest.origin.parts)},
                )
        except BackupError as error:
            raise CommandError(f"{path}: {error}" if options["verify"] else str(error)) from error
        except OSError as error:
            raise CommandError(f"{error.filename or path}: {error.strerror or error}") from error
        self._say("written", path, manifest)

    def _say(self, what: str, path: Path, manifest: Manifest) -> None:
        self.stdout.write(
            f"{path} {what}: {len(manifest.members)} files, {manifest.size_bytes / 1e6:.1f} MB in "
            f"{path.stat().st_size / 1e6:.1f} MB, of {manifest.origin.created_at} "
            f"({settings.PRODUCT_NAME}: {', '.join(manifest.origin.parts)})"
        )
