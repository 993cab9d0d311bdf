"""What ``restore`` refuses, and that a refusal leaves everything as it was."""

import io
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from apps.console.backup.archive import ArchiveWriter, BackupError, Manifest, Origin, archive_read
from apps.console.backup.installation import Installation
from apps.console.backup.restoring import backup_restore, backup_verify
from apps.core.files import var_lock
from tests.integration.maintenance.archives import (
    DAMAGE,
    MIGRATION,
    archive_write,
    sqlite_installation,
)
from tests.integration.maintenance.places import file_write, rows, state, tree


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return archive_write(tmp_path / "backup.tar.gz")


@pytest.fixture
def there(tmp_path: Path) -> Installation:
    return sqlite_installation(tmp_path / "there")


def restore(
    file: Path, there: Installation, *, may_overwrite: bool = False, known: tuple[str, ...] = ()
) -> Manifest:
    return backup_restore(
        file=file,
        target=there,
        known_migrations=known or (MIGRATION, "core.0002_later"),
        may_overwrite=may_overwrite,
        report=lambda _: None,
    )


def test_a_whole_archive_comes_back_whole(archive: Path, there: Installation) -> None:
    out = io.StringIO()
    call_command("backup", "--verify", str(archive), stdout=out)
    assert out.getvalue().startswith(f"{archive} is whole: 5 files, ")
    assert restore(archive, there) == backup_verify(archive)
    assert sorted(tree(there.var_dir)) == [
        "bootstrap.json",
        "files/file-1",
        "models/tiny/1/weights",
        "secret_key",
    ]
    assert len(rows(there.database)["thing"]) == 3000
    for path in there.var_dir.rglob("*"):
        assert path.suffix == ".lock" or path.stat().st_mode & 0o077 == 0, path
    assert not there.media_dir.exists()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_archive_is_refused_and_nothing_changed(
    archive: Path, there: Installation, tmp_path: Path, damage: str
) -> None:
    spoil, says = DAMAGE[damage]
    spoil(archive)
    file_write(there.models_dir / "mine" / "1" / "weights", "mine")
    before, outside = state(there), sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(BackupError, match=says):
        restore(archive, there, may_overwrite=True)
    with pytest.raises(CommandError, match=says):
        call_command("backup", "--verify", str(archive))
    assert state(there) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == outside


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="absent: No such file or directory"):
        call_command("backup", "--verify", str(tmp_path / "absent"))


@pytest.mark.parametrize("name", ["serve.lock", "agent.lock"])
def test_beside_a_running_server_nothing_is_restored(
    there: Installation, archive: Path, name: str
) -> None:
    with var_lock(there.var_dir / name, holder="server"):
        before = state(there)
        with pytest.raises(BackupError, match=r"already works in .*: stop it first"):
            restore(archive, there, may_overwrite=True)
        assert state(there) == before


@pytest.mark.parametrize(
    "name", ["db.sqlite3", "bootstrap.json", "models/a/1/w", "files/file-2", "media/picture"]
)
def test_data_is_not_replaced_unasked(there: Installation, archive: Path, name: str) -> None:
    file_write(there.var_dir / name, "mine")
    with pytest.raises(BackupError, match=r"there is data here \([a-z. ]+\): --force"):
        restore(archive, there)
    assert tree(there.var_dir) == ({} if name == "db.sqlite3" else {name: b"mine"})
    restore(archive, there, may_overwrite=True)
    assert (there.var_dir / "files" / "file-1").exists()
    assert name in ("db.sqlite3", "bootstrap.json") or not (there.var_dir / name).exists()


def test_an_archive_of_a_newer_version_is_refused(there: Installation, archive: Path) -> None:
    with pytest.raises(BackupError, match=rf"newer version, which has {MIGRATION}: install"):
        restore(archive, there, known=("core.0000",))
    assert tree(there.var_dir) == {}


def test_an_archive_of_the_other_database_is_refused(there: Installation, archive: Path) -> None:
    place = replace(there, database={**there.database, "ENGINE": "django.db.backends.postgresql"})
    with pytest.raises(BackupError, match="a sqlite database, and DATABASE_URL leads to postgres"):
        restore(archive, place)
    assert tree(there.var_dir) == {}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_what_fails_half_way_is_taken_back(
    there: Installation, archive: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """The disk refuses the n-th move."""
    restore(archive, there)
    file_write(there.models_dir / "later" / "1" / "weights", "mine")
    before = state(there)
    moves = iter(range(1, 1000))
    rename = Path.rename

    def refuse(self: Path, target: Any) -> Path:
        if next(moves) == n:
            raise OSError(5, "Input/output error", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        restore(archive, there, may_overwrite=True)
    assert next(moves) > n
    assert state(there) == before
    assert not list(there.var_dir.rglob(".restore-*"))


def test_memory_is_bounded(tmp_path: Path) -> None:
    large, file = tmp_path / "large", tmp_path / "backup.tar.gz"
    with large.open("wb") as handle:
        handle.truncate(32 << 20)
    origin = Origin(created_at="now", database="sqlite", parts=(), migrations=())
    tracemalloc.start()
    try:
        with ArchiveWriter(file) as archive:
            archive.add_file("media/large", large)
            archive.finish(origin)
        with file.open("rb") as handle:
            assert archive_read(handle).size_bytes == 32 << 20
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
