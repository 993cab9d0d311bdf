"""Backup and restore: the same installation comes out of it, or nothing is touched."""

import contextlib
import io
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.db.migrations.recorder import MigrationRecorder

from apps.audit.models import AuditEvent
from apps.console.backup.archive import BackupError, Manifest
from apps.console.backup.databases import address, database_dump
from apps.console.backup.installation import Installation
from apps.console.backup.making import backup_make
from apps.console.backup.restoring import backup_restore
from apps.metering.models import Meter
from apps.rbac.models import ApiToken
from tests.factories import ApiTokenFactory, ModelVersionFactory
from tests.integration.engine.test_native_backend import make_backend, make_request, run, tokens
from tests.integration.maintenance.conftest import SECRET_KEY
from tests.integration.maintenance.places import file_write, rows, state, tree
from tests.models import random_llama_dir
from tests.processes import ROOT
from tests.rows import all_of
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db
# What another process reads must be committed.
COMMITTED = pytest.mark.django_db(transaction=True)


def nothing_said(_: str) -> None:
    return


def make(here: Installation, target: Path, *, with_models: bool = True) -> Manifest:
    return backup_make(target=target, source=here, with_models=with_models, report=nothing_said)


def restore(file: Path, there: Installation, *, may_overwrite: bool = False) -> Manifest:
    known = MigrationRecorder(connection).applied_migrations()
    return backup_restore(
        file=file,
        target=there,
        known_migrations=[f"{app}.{name}" for app, name in known],
        may_overwrite=may_overwrite,
        report=nothing_said,
    )


@pytest.fixture
def archive(here: Installation, tmp_path: Path) -> Path:
    file = tmp_path / "backup.tar.gz"
    make(here, file)
    return file


# -- the way there and back --------------------------------------------------------------------


@COMMITTED
def test_rows_files_token_and_answers_are_the_same(
    here: Installation, there: Installation, tmp_path: Path
) -> None:
    """By the commands; the second in a process of its own, with the settings of the default."""
    token = ApiTokenFactory(name="works")
    model = here.models_dir / "llama" / "1"
    model.parent.mkdir()
    shutil.move(random_llama_dir(tmp_path), model)
    ModelVersionFactory(model__name="llama")
    file = tmp_path / "backup.tar.gz"
    before = rows(here.database)
    out = io.StringIO()
    call_command("backup", str(file), stdout=out)
    assert out.getvalue().startswith(f"{file} written: ")
    assert file.stat().st_mode & 0o777 == 0o600
    assert all_of(AuditEvent).get().action == "platform.backed_up"

    script = (
        "import sys, django; django.setup();"
        "from django.core.management import call_command;"
        "from apps.rbac.selectors import principal_of_secret;"
        "call_command('restore', sys.argv[1]);"
        "print(principal_of_secret(sys.argv[2]).label)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(file), token.secret],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}",
            "DJANGO_SETTINGS_MODULE": "config.settings.development",
            "VAR": str(there.var_dir),
            "DATABASE_URL": _url(there),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Restored database, var, models, files, media of 20")
    assert done.stdout.splitlines()[1] == str(token)

    after = rows(there.database)
    assert [row for row in after.pop("audit_auditevent") if "platform.restored" not in row] == []
    assert before.pop("audit_auditevent") == []
    assert after == before
    expected = {
        name: data
        for name, data in tree(here.var_dir).items()
        if "/." not in name and "drafts" not in name and "link" not in name and "logs" not in name
    }
    assert tree(there.var_dir) == expected | {"secret_key": SECRET_KEY.encode()}
    for name in ("secret_key", "bootstrap.json"):
        assert (there.var_dir / name).stat().st_mode & 0o777 == 0o600
    answers = [
        tokens(run(make_backend(place / "llama" / "1"), make_request(1))[1])
        for place in (here.models_dir, there.models_dir)
    ]
    assert answers[0] == answers[1] != []


def _url(installation: Installation) -> str:
    if connection.vendor == "sqlite":
        return ""
    found = installation.database
    user = f"{found['USER']}:{found['PASSWORD']}@" if found["USER"] else ""
    return f"postgresql://{user}{found['HOST']}:{found['PORT'] or 5432}/{found['NAME']}"


@COMMITTED
def test_a_copy_is_of_one_moment_though_others_write(here: Installation, tmp_path: Path) -> None:
    """Each transaction makes two rows: no copy has one of them."""
    stop = threading.Event()

    def write() -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                with transaction.atomic():
                    Meter.objects.create(scope="a", period=str(number))
                    Meter.objects.create(scope="b", period=str(number))
        finally:
            connection.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until("a row of the writer's", all_of(Meter).exists)
        for number in range(3):
            database_dump(here.database, tmp_path / f"dump-{number}")
    finally:
        stop.set()
        writer.join()
    for number in range(3):
        scopes = dumped_scopes(tmp_path / f"dump-{number}")
        assert scopes.count("a") == scopes.count("b") > 0


def dumped_scopes(dump: Path) -> list[str]:
    if connection.vendor == "sqlite":
        with contextlib.closing(sqlite3.connect(dump)) as found:
            return [scope for (scope,) in found.execute("SELECT scope FROM metering_meter")]
    command = ["pg_restore", "--data-only", "--table=metering_meter", "--file=-", str(dump)]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return [line.split("\t")[1] for line in said.splitlines() if line.count("\t") == 4]


# -- making: refusals --------------------------------------------------------------------------


def test_a_file_that_is_there_stays(here: Installation, tmp_path: Path) -> None:
    file = file_write(tmp_path / "backup.tar.gz", "mine")
    with pytest.raises(CommandError, match="is there already"):
        call_command("backup", str(file))
    assert file.read_text() == "mine"
    assert not all_of(AuditEvent).exists()


def test_what_cannot_be_read_leaves_no_file(here: Installation, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    nowhere = {**connection.settings_dict, "NAME": str(tmp_path / "nowhere")}
    broken = replace(here, database=nowhere)
    with pytest.raises(BackupError):
        make(broken, tmp_path / "out" / "backup.tar.gz")
    assert list((tmp_path / "out").iterdir()) == []


def test_without_pg_dump_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": "x", "USER": "", "HOST": ""}
    database |= {"PASSWORD": "", "PORT": "", "OPTIONS": {}}  # type: ignore[dict-item]
    with pytest.raises(BackupError, match="pg_dump is not on PATH: install"):
        database_dump(database, tmp_path / "dump")
    assert not (tmp_path / "dump").exists()


# -- over what is there ------------------------------------------------------------------------


@COMMITTED
def test_data_is_replaced_only_by_force_and_by_whoever_is_alone(
    here: Installation, there: Installation, archive: Path
) -> None:
    """By an archive without models, which leaves those that are there."""
    restore(archive, there)
    later = file_write(there.models_dir / "later" / "1" / "weights", "mine")
    all_of(ApiToken).all().delete()
    second = archive.with_name("second.tar.gz")
    manifest = make(here, second, with_models=False)
    assert manifest.origin.parts == ("database", "var", "files", "media")
    assert not [each for each in manifest.members if each.name.startswith("models/")]
    before = state(there)
    with pytest.raises(BackupError, match=r"here \(a database, bootstrap.json, files, media\): --"):
        restore(second, there)
    with held(there), pytest.raises(BackupError, match="top every server"):
        restore(second, there, may_overwrite=True)
    assert state(there) == before
    if connection.vendor == "postgresql":
        assert_what_cannot_be_loaded_is_taken_back(second, there)
    restore(second, there, may_overwrite=True)
    assert rows(there.database)["rbac_apitoken"] == []
    assert later.read_text() == "mine"
    assert not list(there.var_dir.rglob(".restore-*"))


def assert_what_cannot_be_loaded_is_taken_back(file: Path, there: Installation) -> None:
    """A table of somebody else's stands in the way, after the files were moved."""
    with psycopg.connect(address(there.database), autocommit=True) as server:
        server.execute("CREATE TABLE other (token bigint REFERENCES rbac_apitoken (id))")
    before = state(there)
    with pytest.raises(BackupError, match=r"pg_restore failed: .*other"):
        restore(file, there, may_overwrite=True)
    assert state(there) == before
    assert not list(there.var_dir.rglob(".restore-*"))
    with psycopg.connect(address(there.database), autocommit=True) as server:
        server.execute("DROP TABLE other")


def held(there: Installation) -> Any:
    """Somebody else's connection to the database."""
    if connection.vendor == "postgresql":
        return psycopg.connect(address(there.database))
    found = sqlite3.connect(there.database["NAME"])
    found.execute("PRAGMA journal_mode=WAL")
    found.execute("SELECT count(*) FROM rbac_apitoken").fetchone()
    return contextlib.closing(found)
