"""The machine and what is installed on it: disks, clock, versions, secrets, the files of models."""

import hashlib
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from django.conf import settings
from django.db import connection
from django.utils import timezone

from apps.audit.selectors import events_recent
from apps.console.doctor.findings import Finding, failure, ok, warning
from apps.core.exceptions import AppError
from apps.registry.selectors import (
    artifact_chunks,
    model_versions_all,
    remote_storage,
    version_dir,
)

if TYPE_CHECKING:
    from apps.registry.models import ModelVersion

_FREE_LEAST_BYTES: Final = 256 * 1024**2
_FREE_GOOD_BYTES: Final = 2 * 1024**3
_INODES_LEAST: Final = 2_000
_SKEW_SEEN_S, _SKEW_BAD_S = 1.0, 10.0
_WATCH_S: Final = 0.1
_STEP_S: Final = 0.05
# Before this was written, no clock is right.
_EPOCH_LEAST_S: Final = 1_750_000_000.0
_PYTHON_LEAST: Final = (3, 11)
_PIN: Final = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
_KEYS_OF_SOURCES: Final = ("django-insecure", "only-for-", "only-while-")
_KEEP_TIME: Final = "have the clock kept by a time service (`timedatectl set-ntp true`)"
_FIX_KEY: Final = (
    "set SECRET_KEY to 50 random characters, or unset it to have VAR/secret_key made; people will "
    "have to sign in anew"
)


def look_at_disks() -> Iterator[Finding]:
    places = {"VAR": Path(settings.VAR_DIR), "MODELS_DIR": Path(settings.MODELS_DIR)}
    places["FILES_DIR"] = Path(settings.FILES_DIR)
    if remote_storage() is not None:
        places["NODE_CACHE_DIR"] = Path(settings.NODE_CACHE_DIR)
    if connection.vendor == "sqlite":
        places["the database"] = Path(connection.settings_dict["NAME"]).parent
    seen: set[int] = set()
    for name, place in places.items():
        while not place.exists():
            place = place.parent
        device = place.stat().st_dev
        if device not in seen:
            seen.add(device)
            yield disk_finding(f"disk of {name}", place)


def disk_finding(
    name: str,
    place: Path,
    *,
    least_bytes: int = _FREE_LEAST_BYTES,
    good_bytes: int = _FREE_GOOD_BYTES,
) -> Finding:
    usage, files = shutil.disk_usage(place), os.statvfs(place)
    seen = f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free at {place}"
    remedy = "make room: `manage.py prune` removes what is over; models nobody uses are the largest"
    if usage.free < least_bytes:
        return failure(name, seen, remedy)
    if files.f_files and files.f_favail < _INODES_LEAST:
        return failure(name, f"{files.f_favail} more files can be made at {place}", remedy)
    if usage.free < good_bytes:
        return warning(name, seen, remedy)
    return ok(name, seen)


def look_at_clock() -> Iterator[Finding]:
    before_s = _wall_beside_steady_s()
    time.sleep(_WATCH_S)
    step_s = _wall_beside_steady_s() - before_s
    if time.time() < _EPOCH_LEAST_S:
        yield failure("clock", f"says {timezone.now():%Y-%m-%d}, which is long ago", _KEEP_TIME)
    elif abs(step_s) > _STEP_S:
        yield warning("clock", f"was set by {step_s:+.2f} s while it was looked at", _KEEP_TIME)
    else:
        yield ok("clock", f"{timezone.now():%Y-%m-%d %H:%M:%S} UTC, runs evenly")


def _wall_beside_steady_s() -> float:
    """Return the wall clock's lead over the steady one, from the quickest of a few readings: a busy
    machine may stop us between the two."""
    readings = []
    for _ in range(5):
        first_s, wall_s, last_s = time.monotonic(), time.time(), time.monotonic()
        readings.append((last_s - first_s, wall_s - (first_s + last_s) / 2))
    return min(readings)[1]


def look_at_database_clock() -> Iterator[Finding]:
    yield _database_clock()


def _database_clock() -> Finding:
    newest = events_recent(limit=1)
    if newest and (ahead_s := (newest[0].at - timezone.now()).total_seconds()) > _SKEW_SEEN_S:
        seen = f"the newest audit event is {ahead_s:.0f} s in the future: the clock was set back"
        return warning("database clock", seen, _KEEP_TIME)
    if connection.vendor == "sqlite":
        return ok("database clock", "SQLite has none of its own")
    with connection.cursor() as cursor:
        before_s = time.time()
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
        skew_s = float(cursor.fetchone()[0]) - (before_s + time.time()) / 2
    seen = f"{skew_s:+.2f} s beside this machine's"
    if abs(skew_s) < _SKEW_SEEN_S:
        return ok("database clock", seen)
    judge = failure if abs(skew_s) > _SKEW_BAD_S else warning
    return judge("database clock", seen, f"on both machines {_KEEP_TIME}")


def look_at_versions() -> Iterator[Finding]:
    running = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _PYTHON_LEAST:
        yield failure("python", running, "make the virtual environment with Python 3.11 or newer")
    else:
        yield ok("python", running)
    yield from packages_findings(Path(settings.BASE_DIR) / "requirements")


def packages_findings(locks: Path) -> Iterator[Finding]:
    """Compare what is installed with the locks; nothing is imported for it."""
    pinned = {name: _pins(locks / f"{name}.txt") for name in ("base", "torch", "engine")}
    torch = _installed("torch")
    seen = f"Django {_installed('django')}, torch {torch or 'is not installed (no engine here)'}"
    if not pinned["base"]:
        yield ok("packages", f"{seen}; there is no lock beside the code to compare with")
        return
    wrong = []
    for lock, pins in pinned.items():
        if lock != "base" and torch is None:
            continue
        for package, version in pins.items():
            found = _installed(package)
            # A build's own mark, such as +cpu, is no other version.
            if (found or "").split("+")[0] != version:
                wrong.append(f"{package} {found or 'missing'} (lock: {version})")
    if not wrong:
        yield ok("packages", f"{seen}; all as locked")
        return
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    yield warning(
        "packages",
        f"{seen}; not as locked: {', '.join(wrong[:5])}{more}",
        "`make clean serve` installs anew what the locks in requirements/ say",
    )


def _pins(lock: Path) -> dict[str, str]:
    try:
        return dict(_PIN.findall(lock.read_text()))
    except FileNotFoundError:
        return {}


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def look_at_secrets() -> Iterator[Finding]:
    var = Path(settings.VAR_DIR)
    if settings.SECRET_KEY.startswith(_KEYS_OF_SOURCES) or len(set(settings.SECRET_KEY)) < 5:
        yield failure("secret key", "is one that others know, or too regular", _FIX_KEY)
    elif len(settings.SECRET_KEY) < 50:
        yield warning("secret key", f"has {len(settings.SECRET_KEY)} characters", _FIX_KEY)
    else:
        yield ok("secret key", "is this installation's own")
    files = [var, var / "secret_key", var / "bootstrap.json"]
    if connection.vendor == "sqlite":
        files.append(Path(connection.settings_dict["NAME"]))
    yield from modes_findings(file for file in files if file.exists())


def modes_findings(files: Iterator[Path]) -> Iterator[Finding]:
    """Say of each whether others of this machine may read or change it."""
    n_private = 0
    for file in files:
        status = file.stat()
        mode = stat.S_IMODE(status.st_mode)
        right = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
        remedy = f"chmod {right:o} {file}"
        if mode & 0o022:
            yield failure("file modes", f"others may change {file} (mode {mode:o})", remedy)
        elif mode & 0o077 and right == 0o600:
            yield failure("file modes", f"others may read {file} (mode {mode:o})", remedy)
        elif mode & 0o077:
            yield warning("file modes", f"others may look into {file} (mode {mode:o})", remedy)
        else:
            n_private += 1
    if n_private:
        yield ok("file modes", f"{n_private} files with secrets are their owner's alone")


def look_at_models() -> Iterator[Finding]:
    versions = model_versions_all()
    if not versions:
        yield warning("models", "there are none", "import one: `manage.py import_model --help`")
    for version in versions:
        yield model_finding(version)


def model_finding(version: "ModelVersion") -> Finding:
    """Compare a model's files with its manifest, and the manifest with its row: names and sizes,
    which takes no time. Contents are checked whenever an engine loads it."""
    name = f"model {version}"
    remedy = "restore its files from a backup, or import the model again and deploy that version"
    try:
        place, manifest, found = _files_seen(version)
    except OSError as error:
        return failure(name, f"{error.filename}: {error.strerror}", remedy)
    except AppError as error:
        return failure(name, error.message, remedy)
    if hashlib.sha256(manifest).hexdigest() != version.manifest_sha256:
        return failure(name, "its manifest is not the one that was imported", remedy)
    del found["manifest.json"]
    expected = {file: each["size_bytes"] for file, each in version.manifest["files"].items()}
    for file in sorted(expected.keys() | found.keys()):
        if found.get(file) != expected.get(file):
            told = f"{found.get(file, 'no')} bytes, and {expected.get(file, 'none')} are listed"
            return failure(name, f"{place}/{file} has {told}", remedy)
    return ok(name, f"{len(found)} files, {sum(found.values()) / 1e6:.0f} MB, as imported")


def _files_seen(version: "ModelVersion") -> tuple[str, bytes, dict[str, int]]:
    """Return where a model's files are, its manifest, and their sizes by name."""
    directory, storage = version_dir(version), remote_storage()
    if directory is not None:
        manifest = (directory / "manifest.json").read_bytes()
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(directory)}
        return str(directory), manifest, sizes
    assert storage is not None
    manifest = b"".join(artifact_chunks(f"{version.path}/manifest.json", 0))
    return f"{storage}/{version.path}", manifest, storage.sizes(version.path)
