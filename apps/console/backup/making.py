"""Makes a backup of a running installation, or of one that stands still."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone

from apps.console.backup.archive import ArchiveWriter, BackupError, Manifest, Origin
from apps.console.backup.databases import MEMBERS, database_dump, vendor_of
from apps.console.backup.installation import BOOTSTRAP, SECRET_KEY, Installation, tree_files

Report = Callable[[str], None]


def backup_make(
    *, target: Path, source: Installation, with_models: bool, report: Report
) -> Manifest:
    """Write a backup to a new file, which is whole or not there.

    The database comes first: every file that it speaks of is then copied after it, and one that
    came later is no harm.

    Raises:
        BackupError: it cannot be made, or there is such a file.
        OSError: something cannot be read or written.
    """
    if target.exists():
        raise BackupError(f"{target} is there already: name another file, or remove it")
    if not target.parent.is_dir():
        raise BackupError(f"{target.parent} is not a directory")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as directory:
        draft = Path(directory) / "archive"
        with ArchiveWriter(draft) as archive:
            migrations = _migrations()
            dump = Path(directory) / "database"
            database_dump(source.database, dump)
            vendor = vendor_of(source.database)
            archive.add_file(MEMBERS[vendor], dump)
            dump.unlink()
            _var_add(archive, source)
            trees = [name for name in source.trees if with_models or name != "models"]
            for part in trees:
                _tree_add(archive, part, root=source.trees[part], report=report)
            manifest = archive.finish(
                Origin(
                    created_at=timezone.now().isoformat(timespec="seconds"),
                    database=vendor,
                    parts=("database", "var", *trees),
                    migrations=migrations,
                )
            )
        draft.rename(target)
    return manifest


def _var_add(archive: ArchiveWriter, source: Installation) -> None:
    archive.add_bytes(f"var/{SECRET_KEY}", source.secret_key.encode())
    bootstrap = source.var_dir / BOOTSTRAP
    if bootstrap.is_file():
        archive.add_file(f"var/{BOOTSTRAP}", bootstrap)


def _tree_add(archive: ArchiveWriter, part: str, *, root: Path, report: Report) -> None:
    for name, path in tree_files(part, root):
        try:
            archive.add_file(f"{part}/{name}", path)
        except FileNotFoundError:
            report(f"{path} was deleted meanwhile and is left out")


def _migrations() -> tuple[str, ...]:
    applied = MigrationRecorder(connection).applied_migrations()
    return tuple(sorted(f"{app}.{name}" for app, name in applied))
