"""Puts a backup in the place of an installation: all of it is checked before anything is touched,
written beside what is there, and moved into place at the end."""

import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from apps.console.backup.archive import BackupError, Manifest, archive_read
from apps.console.backup.databases import (
    MEMBERS,
    database_check_idle,
    dump_check,
    is_database_empty,
    postgresql_load,
    sqlite_files,
    vendor_of,
)
from apps.console.backup.installation import BOOTSTRAP, SECRET_KEY, Installation, tree_files
from apps.core.files import LockHeld, var_lock

Report = Callable[[str], None]

_STAGING: Final = ".restore-"
_LOCKS: Final = {"serve.lock": "server", "agent.lock": "engine agent"}


def backup_verify(file: Path) -> Manifest:
    """Read all of a backup; raises BackupError unless every byte is what it was."""
    with file.open("rb") as handle:
        return archive_read(handle)


def backup_restore(
    *,
    file: Path,
    target: Installation,
    known_migrations: Collection[str],
    may_overwrite: bool,
    report: Report,
) -> Manifest:
    """Put a backup in place. A refusal, or an error on the way, leaves everything as it was.

    Raises:
        BackupError: the backup is not good or not for here, something runs, or there is data.
    """
    with file.open("rb") as handle, ExitStack() as stack:
        manifest = archive_read(handle)
        report(f"The archive of {manifest.origin.created_at} is whole")
        _check_fits(manifest, target=target, known_migrations=known_migrations)
        try:
            for name, holder in _LOCKS.items():
                stack.enter_context(var_lock(target.var_dir / name, holder=holder))
        except LockHeld as error:
            raise BackupError(str(error)) from error
        if not may_overwrite and (found := _occupied(target, parts=manifest.origin.parts)):
            raise BackupError(f"there is data here ({', '.join(found)}): --force replaces it")
        _check_space(manifest, target=target)
        database_check_idle(target.database)
        with _staged(handle, manifest=manifest, target=target) as staging:
            _put_in_place(staging, manifest=manifest, target=target)
    return manifest


# -- what is refused ---------------------------------------------------------------------------


def _check_fits(
    manifest: Manifest, *, target: Installation, known_migrations: Collection[str]
) -> None:
    origin = manifest.origin
    vendor = vendor_of(target.database)
    if origin.database != vendor:
        raise BackupError(
            f"the archive holds a {origin.database} database, and DATABASE_URL leads to {vendor}"
        )
    names = {member.name for member in manifest.members}
    if missing := {MEMBERS[vendor], f"var/{SECRET_KEY}"} - names:
        raise BackupError(f"{min(missing)!r} is missing")
    if newer := sorted(set(origin.migrations) - set(known_migrations)):
        raise BackupError(
            f"the archive was made by a newer version, which has {newer[0]}: install that version"
        )


def _occupied(target: Installation, *, parts: Collection[str]) -> list[str]:
    """Return the names of what a restore would replace. A secret key alone is nothing: every
    command makes one."""
    found = [] if is_database_empty(target.database) else ["a database"]
    if (target.var_dir / BOOTSTRAP).exists():
        found.append(BOOTSTRAP)
    for part, root in target.trees.items():
        if part in parts and next(tree_files(part, root), None) is not None:
            found.append(part)
    return found


def _check_space(manifest: Manifest, *, target: Installation) -> None:
    needed: dict[int, int] = {}
    directories: dict[int, Path] = {}
    for member in manifest.members:
        part = member.name.split("/", 1)[0]
        place = next(path for path in _ancestors(_home(part, target)) if path.exists())
        device = place.stat().st_dev
        directories[device] = place
        needed[device] = needed.get(device, 0) + member.size_bytes
    for device, n_bytes in needed.items():
        free = shutil.disk_usage(directories[device]).free
        if n_bytes > free:
            raise BackupError(
                f"{directories[device]} has {free / 1e6:.0f} MB free, and {n_bytes / 1e6:.0f} MB "
                "are needed beside what is there"
            )


def _ancestors(path: Path) -> Iterator[Path]:
    yield path
    yield from path.parents


def _home(part: str, target: Installation) -> Path:
    """Return the directory that a part's files end up in."""
    if part == "database" and vendor_of(target.database) == "sqlite":
        return Path(target.database["NAME"]).parent
    return target.trees.get(part, target.var_dir)


# -- what is done ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Staging:
    """Where the new files wait and the old ones are kept: below the directory that they belong to,
    because only there a move is sure to be one. is_needed: what it holds is not elsewhere."""

    target: Installation
    token: str = field(default_factory=lambda: secrets.token_hex(4))
    homes: set[Path] = field(default_factory=set)
    made: list[Path] = field(default_factory=list)
    is_needed: bool = False

    def new(self, part: str) -> Path:
        return self._folder(part, "new")

    def old(self, part: str) -> Path:
        return self._folder(part, "old")

    def open(self, name: str) -> IO[bytes]:
        part, below = name.split("/", 1)
        path = self.new(part) / below
        _private_folder(path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(path, flags, 0o600), "wb")

    def remove(self) -> None:
        if self.is_needed:
            return
        for home in self.homes:
            shutil.rmtree(home / f"{_STAGING}{self.token}", ignore_errors=True)
        for home in self.made:
            with suppress(OSError):  # it is in use
                home.rmdir()

    def _folder(self, part: str, which: str) -> Path:
        home = _home(part, self.target)
        self.homes.add(home)
        if not home.exists():
            self.made.append(home)
        folder = home / f"{_STAGING}{self.token}" / which / part
        _private_folder(folder)
        return folder


def _private_folder(folder: Path) -> None:
    """Make it, and those that it lies in, for nobody else."""
    if not folder.exists():
        _private_folder(folder.parent)
        folder.mkdir(mode=0o700)


@contextmanager
def _staged(handle: IO[bytes], *, manifest: Manifest, target: Installation) -> Iterator[_Staging]:
    """Write the files beside those that are there, checked once more as they are read."""
    staging = _Staging(target)
    try:
        if archive_read(handle, sink=staging.open) != manifest:
            raise BackupError("the archive changed while it was read")
        vendor = manifest.origin.database
        dump_check(vendor, staging.new("database") / MEMBERS[vendor].split("/")[1])
        os.sync()  # what is moved into place must be there after a power cut
        yield staging
    finally:
        staging.remove()


def _put_in_place(staging: _Staging, *, manifest: Manifest, target: Installation) -> None:
    """Move the old files away and the new ones in; take all of it back if anything fails."""
    begun: list[tuple[Path, Path]] = []
    try:
        for source, place in _moves(staging, manifest=manifest, target=target):
            begun.append((source, place))
            source.rename(place)
        if manifest.origin.database == "postgresql":
            dump = staging.new("database") / MEMBERS["postgresql"].split("/")[1]
            postgresql_load(target.database, dump)
    except BaseException:
        staging.is_needed = True
        for source, place in reversed(begun):
            if not source.exists():
                place.rename(source)
        staging.is_needed = False
        raise


def _moves(
    staging: _Staging, *, manifest: Manifest, target: Installation
) -> Iterator[tuple[Path, Path]]:
    """Yield (from, to). A directory stays and its contents change: it may be a mount of its own."""
    if manifest.origin.database == "sqlite":
        for file in sqlite_files(target.database):
            yield file, staging.old("database") / file.name
        new = staging.new("database") / MEMBERS["sqlite"].split("/")[1]
        yield new, Path(target.database["NAME"])
    for name in (SECRET_KEY, BOOTSTRAP):
        if (file := target.var_dir / name).exists():
            yield file, staging.old("var") / name
        if (file := staging.new("var") / name).exists():
            yield file, target.var_dir / name
    for part, root in target.trees.items():
        if part not in manifest.origin.parts:
            continue
        old, new = staging.old(part), staging.new(part)
        for entry in sorted(root.iterdir()):
            if not entry.name.startswith(_STAGING):
                yield entry, old / entry.name
        for entry in sorted(new.iterdir()):
            yield entry, root / entry.name
