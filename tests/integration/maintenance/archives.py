"""A small archive made by hand, and ways to spoil it: for what needs no database of Django's."""

import contextlib
import gzip
import io
import json
import os
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path

from apps.console.backup.archive import ArchiveWriter, Origin
from apps.console.backup.installation import Installation

Member = tuple[tarfile.TarInfo, bytes]
Found = list[Member]
Damage = Callable[[Path], object]

MIGRATION = "core.0001_initial"


def archive_write(file: Path) -> Path:
    database = file.with_name("database-of-archive")
    database.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE thing (name)")
        connection.executemany("INSERT INTO thing VALUES (?)", [(str(n),) for n in range(3000)])
    with ArchiveWriter(file) as archive:
        archive.add_file("database/db.sqlite3", database)
        archive.add_bytes("var/secret_key", b"of the archive")
        archive.add_bytes("var/bootstrap.json", b"{}")
        archive.add_bytes("models/tiny/1/weights", os.urandom(20_000))
        archive.add_bytes("files/file-1", b"[]")
        archive.finish(
            Origin(
                created_at="2026-11-26T00:00:00+00:00",
                database="sqlite",
                parts=("database", "var", "models", "files", "media"),
                migrations=(MIGRATION,),
            )
        )
    database.unlink()
    return file


def sqlite_installation(var: Path) -> Installation:
    var.mkdir()
    return Installation(
        var_dir=var,
        models_dir=var / "models",
        files_dir=var / "files",
        media_dir=var / "media",
        secret_key="another",
        database={"ENGINE": "django.db.backends.sqlite3", "NAME": str(var / "db.sqlite3")},
    )


def rewritten(change: Callable[[Found], Found]) -> Damage:
    """Write the archive anew, whole as far as gzip and tar can tell."""

    def damage(file: Path) -> None:
        with tarfile.open(file) as tar:
            found = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
        with gzip.open(file, "wb") as zipped, tarfile.open(fileobj=zipped, mode="w|") as tar:
            for info, data in change(found):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    return damage


def member(name: str, *, kind: bytes = tarfile.REGTYPE, to: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info, b"evil" if kind == tarfile.REGTYPE else b""


def first(*new: Member) -> Damage:
    return rewritten(lambda found: [*new, *found])


def altered(start: str) -> Damage:
    return rewritten(
        lambda found: [(i, d[:-1] + b"?" if i.name.startswith(start) else d) for i, d in found]
    )


def cut(share: float) -> Damage:
    return lambda file: os.truncate(file, int(file.stat().st_size * share))


def flip(share: float) -> Damage:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[int(len(data) * share)] ^= 0x10
        file.write_bytes(data)

    return damage


def other_format(found: Found) -> Found:
    *rest, (info, data) = found
    return [*rest, (info, json.dumps(json.loads(data) | {"format": 2}).encode())]


def no_archive(file: Path) -> None:
    file.write_bytes(gzip.compress(b"x" * 4000))


DAMAGE: dict[str, tuple[Damage, str]] = {
    "empty": (cut(0), "cut off or altered"),
    "cut early": (cut(0.1), "cut off or altered"),
    "cut late": (cut(0.99), "cut off or altered"),
    "no tar": (no_archive, "cut off or altered"),
    "bit early": (flip(0.05), "altered|no place|plain file|manifest"),
    "bit in the middle": (flip(0.5), "altered|no place|plain file|manifest"),
    "bit late": (flip(0.97), "altered|manifest"),
    "row": (altered("database/"), "'database/db.sqlite3' was altered"),
    "weights": (altered("models/"), "'models/tiny/1/weights' was altered"),
    "no manifest": (rewritten(lambda found: found[:-1]), "has no manifest"),
    "missing": (rewritten(lambda found: found[1:]), "'database/db.sqlite3' is missing"),
    "unlisted": (first(member("models/x")), "'models/x' is not in the manifest"),
    "twice": (rewritten(lambda found: [found[0], *found]), "is there twice"),
    "after": (rewritten(lambda found: [*found, member("media/x")]), "after the manifest"),
    "format": (rewritten(other_format), "has format 2; this version reads 1"),
    "up": (first(member("models/../../evil")), "'models/../../evil' is no place"),
    "root": (first(member("/evil")), "'/evil' is no place"),
    "elsewhere": (first(member("logs/evil")), "'logs/evil' is no place"),
    "bare": (first(member("models")), "'models' is no place"),
    "empty step": (first(member("models//evil")), "'models//evil' is no place"),
    "link": (first(member("models/l", kind=tarfile.SYMTYPE, to="/")), "'models/l' is not a plain"),
    "hard link": (first(member("models/l", kind=tarfile.LNKTYPE, to="x")), "not a plain file"),
    "folder": (first(member("models/d", kind=tarfile.DIRTYPE)), "not a plain file"),
    "device": (first(member("models/d", kind=tarfile.CHRTYPE)), "not a plain file"),
}
