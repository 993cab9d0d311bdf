"""``manage.py restore PATH``: an installation from a backup."""

import os
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError, connection, connections
from django.db.migrations.loader import MigrationLoader

from apps.audit.services import event_record
from apps.audit.types import SYSTEM
from apps.console.backup.archive import BackupError, Manifest
from apps.console.backup.installation import SECRET_KEY, installation_here
from apps.console.backup.restoring import backup_restore


class Command(BaseCommand):
    help = (
        "Put a backup in the place of this installation, which must stand still. Everything is "
        "checked before anything is touched."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("path", type=Path, help="archive that `backup` wrote")
        parser.add_argument("--force", action="store_true", help="replace the data that is here")

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["path"].absolute()
        known = MigrationLoader(None, ignore_no_migrations=True).disk_migrations
        target = installation_here()
        connections.close_all()
        try:
            manifest = backup_restore(
                file=path,
                target=target,
                known_migrations=[f"{app}.{name}" for app, name in known],
                may_overwrite=options["force"],
                report=self.stderr.write,
            )
        except BackupError as error:
            raise CommandError(f"nothing was changed: {error}") from error
        except OSError as error:
            said = f"{error.filename or path}: {error.strerror or error}"
            raise CommandError(f"nothing was changed: {said}") from error
        self._note(path, manifest)
        self.stdout.write(
            f"Restored {', '.join(manifest.origin.parts)} of {manifest.origin.created_at}. Start "
            "with `make serve`, which also migrates the database."
        )

    def _note(self, path: Path, manifest: Manifest) -> None:
        """Say in the restored trail that it was restored, and to the operator what to think of."""
        key = settings.VAR_DIR / SECRET_KEY
        if os.environ.get("SECRET_KEY", key.read_text()) != key.read_text():
            self.stderr.write(
                f"SECRET_KEY is set to another key than the backup's, which is in {key}: people "
                "will have to sign in anew"
            )
        try:
            event_record(
                action="platform.restored",
                actor=SYSTEM,
                changes={"file": path.name, "made_at": manifest.origin.created_at},
            )
        except (DatabaseError, InterfaceError) as error:
            self.stderr.write(f"The audit trail could not be told: {error}")
        finally:
            connection.close()
