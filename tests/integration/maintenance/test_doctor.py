"""``doctor``: what each check says of a platform that is well, and of each way to be ill."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone

from apps.batches.tasks import reap
from apps.console.doctor import database, processes
from apps.console.doctor.checks import CHECKS, findings_now
from apps.console.doctor.findings import Check, Finding, examine, ok, warning, worst
from apps.core.files import var_lock
from apps.core.models import Heartbeat
from tests.factories import (
    BatchFactory,
    DeploymentFactory,
    EngineProcessFactory,
    ReplicaFactory,
    UsageRecordFactory,
)
from tests.integration.maintenance.places import file_write
from tests.integration.maintenance.telling import told
from tests.integration.wire.harness import EPOCH, running
from tests.processes import ROOT

# -- how checks are run ------------------------------------------------------------------------


def test_no_check_hides_another() -> None:
    never = threading.Event()

    def hang() -> Iterator[Finding]:
        yield ok("a", "x")
        never.wait()

    def fall() -> Iterator[Finding]:
        yield ok("first", "was well")
        raise ZeroDivisionError("by zero")

    def away() -> Iterator[Finding]:
        raise OperationalError("server closed the\nconnection")
        yield

    checks = (
        Check(name="hangs", look=hang, remedy="kick it"),
        Check(name="falls", look=fall, remedy="lift it"),
        Check(name="away", look=away, remedy="wait", needs_database=True),
        Check(name="database", look=away, remedy="start it"),
        Check(name="well", look=lambda: [ok("well", "is")], remedy=""),
    )
    asked_s = time.monotonic()
    found = examine(checks, deadline_s=0.3)
    assert time.monotonic() - asked_s < 2
    assert [(each.name, each.status, each.seen, each.remedy) for each in found] == [
        ("hangs", "failure", "no answer in 0.3 s", "kick it"),
        ("first", "ok", "was well", ""),
        ("falls", "failure", "ZeroDivisionError: by zero", "lift it"),
        ("away", "warning", "the database says: server closed the connection", "wait"),
        ("database", "failure", "the database says: server closed the connection", "start it"),
        ("well", "ok", "is", ""),
    ]
    assert worst(found) == "failure"
    assert worst([ok("a", ""), warning("b", "", "")]) == "warning"
    never.set()


def test_without_a_database_the_rest_is_looked_at(tmp_path: Path) -> None:
    """As an operator sees it: JSON alone on standard output, and the exit status says it."""
    (tmp_path / "db.sqlite3").mkdir()
    done = doctor(tmp_path)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    found = {each["name"]: each for each in report["findings"]}
    assert report["status"] == "failure"
    assert found["database"] == {
        "name": "database",
        "status": "failure",
        "seen": "the database says: unable to open database file",
        "remedy": "start the database, and see that DATABASE_URL leads to it (or that the file "
        "under VAR can be opened)",
    }
    for name in ("migrations", "reservations", "worker and beat", "models", "database clock"):
        assert found[name]["status"] == "warning", found[name]
    for name in ("cache", "engines", "disk of VAR", "clock", "python", "secret key"):
        assert found[name]["status"] == "ok", found[name]
    assert ", torch 2." in found["packages"]["seen"]
    n = sum(each["status"] == "failure" for each in report["findings"])
    said = f"CommandError: {n} of {len(report['findings'])} findings are failures\n"
    assert done.stderr == said


def doctor(var: Path) -> "subprocess.CompletedProcess[str]":
    """Run it where torch is installed and cannot be imported."""
    file_write(var / "path" / "torch" / "__init__.py", "raise RuntimeError('imported')")
    return subprocess.run(
        [sys.executable, "manage.py", "doctor", "--json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "VAR": str(var), "PYTHONPATH": str(var / "path")},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_database_that_was_never_made_is_not_made_by_looking(
    var: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("a file is SQLite's")
    monkeypatch.setitem(connection.settings_dict, "NAME", str(var / "db.sqlite3"))
    found = findings_now()
    assert (found[0].name, found[0].status) == ("database", "failure")
    assert found[0].seen == f"there is no file {var / 'db.sqlite3'}"
    assert not (var / "db.sqlite3").exists()
    assert {"disk of VAR", "clock", "python"} <= {each.name for each in found}


@pytest.mark.django_db(transaction=True)
def test_every_check_looks(var: Path) -> None:
    """All of them, in threads of their own, on a database without rows."""
    found = findings_now()
    assert {each.seen for each in found if "the database says" in each.seen} == set()
    names = {each.name for each in found}
    assert {"database", "database engine", "migrations", "reservations", "cache", "broker"} <= names
    assert {"worker", "beat", "agent", "engines", "models", "disk of VAR", "clock"} <= names
    assert {"database clock", "python", "packages", "secret key"} <= names
    # The settings of tests have a known key, and their database a mode like any file's.
    expected = ["secret key", "file modes"] if connection.vendor == "sqlite" else ["secret key"]
    assert [each.name for each in found if each.status == "failure"] == expected
    assert len({check.name for check in CHECKS}) == len(CHECKS)


# -- the database ------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_database_and_its_migrations() -> None:
    names = [(name, status) for name, status, _ in told(database.look_at_database())]
    assert names == [("database", "ok"), ("database engine", "ok")]
    applied = MigrationRecorder(connection).applied_migrations()
    n, newest = len(applied), max(name for app, name in applied if app == "core")
    assert told(database.look_at_migrations()) == [("migrations", "ok", f"all {n} applied")]
    recorder = MigrationRecorder(connection)
    recorder.record_applied("core", "9999_of_the_future")
    recorder.record_unapplied("core", newest)
    (missing, unknown) = told(database.look_at_migrations())
    assert missing[:2] == ("migrations", "failure")
    assert missing[2] == f"1 not applied: core.{newest}"
    assert unknown[:2] == ("migrations", "warning")
    assert "core.9999_of_the_future" in unknown[2]


def test_a_journal_that_is_not_wal_is_told() -> None:
    assert database._sqlite("wal").status == "ok"
    assert database._sqlite("delete").status == "failure"
    assert database._postgresql(150_020, "15.20", 10**7).status == "ok"
    assert database._postgresql(130_009, "13.9", 10**7).status == "failure"


@pytest.mark.django_db
def test_reservations_past_their_life() -> None:
    now = timezone.now()
    UsageRecordFactory(open=True, expires_at=now + timedelta(minutes=5))
    UsageRecordFactory(open=True, expires_at=now - timedelta(seconds=20))
    assert told(database.look_at_reservations())[0][1] == "ok"
    UsageRecordFactory(open=True, expires_at=now - timedelta(hours=2))
    UsageRecordFactory(expires_at=now - timedelta(hours=9))
    ((_, status, seen),) = told(database.look_at_reservations())
    assert status == "warning"
    assert seen.startswith("2 are open past their life, the first for 2:00:0")


# -- processes ---------------------------------------------------------------------------------


def test_the_cache_makes_a_round_trip(settings: Any) -> None:
    ((_, status, seen),) = told(processes.look_at_cache())
    assert (status, seen[:20]) == ("ok", "of each process alon")
    shared = {"BACKEND": "django.core.cache.backends.redis.RedisCache"}
    settings.CACHES = {
        "default": {**shared, "LOCATION": "redis://127.0.0.1:1", "OPTIONS": {"socket_timeout": 1}}
    }
    check = next(check for check in CHECKS if check.name == "cache")
    (found,) = examine([check])
    assert (found.status, found.remedy) == ("failure", check.remedy)
    assert "ConnectionError" in found.seen


def test_a_broker_of_files(tmp_path: Path) -> None:
    assert processes._folder_broker(tmp_path / "absent").status == "warning"
    assert processes._folder_broker(tmp_path).status == "ok"
    for number in range(1001):
        (tmp_path / str(number)).touch()
    assert processes._folder_broker(tmp_path).status == "warning"


@pytest.mark.django_db
def test_worker_and_beat_are_known_by_what_they_did() -> None:
    def statuses() -> list[str]:
        return [status for _, status, _ in told(processes.look_at_worker())]

    assert statuses() == ["warning", "warning"]
    batch = BatchFactory()
    assert statuses() == ["failure", "failure"]
    batch.lease_until = timezone.now() + timedelta(seconds=10)
    batch.save()
    assert statuses() == ["ok", "ok"]
    batch.delete()
    reap()
    assert statuses() == ["ok", "ok"]
    assert set(Heartbeat.objects.values_list("name", flat=True)) == {"worker", "beat"}
    noted = Heartbeat.objects.get(name="beat").at
    reap()
    assert Heartbeat.objects.get(name="beat").at == noted  # not each time
    Heartbeat.objects.update(at=timezone.now() - timedelta(minutes=2))
    assert [seen for _, _, seen in told(processes.look_at_worker())] == ["heard of 120 s ago"] * 2
    assert statuses() == ["warning", "warning"]


@pytest.mark.django_db
def test_the_agent_is_known_by_its_lock(var: Path) -> None:
    assert told(processes.look_at_agent())[0][1] == "ok"
    DeploymentFactory()
    assert told(processes.look_at_agent()) == [
        ("agent", "failure", "does not run, and 1 deployments should")
    ]
    file_write(var / "agent.lock", "1")  # left by one that ended
    assert told(processes.look_at_agent())[0][1] == "failure"
    with var_lock(var / "agent.lock", holder="engine agent"):
        assert told(processes.look_at_agent()) == [("agent", "ok", f"runs (pid {os.getpid()})")]


@pytest.mark.django_db
def test_engines_as_their_rows_say(var: Path) -> None:
    assert told(processes.look_at_engines()) == [("engines", "ok", "no deployment should run")]
    DeploymentFactory(name="none")
    states = {"starting": "", "failed": "no such model", "backing_off": "killed"}
    for index, (state, error) in enumerate(states.items()):
        engine = EngineProcessFactory(name=state, state=state, last_error=error)
        ReplicaFactory(deployment=DeploymentFactory(name=state), index=index, engine_process=engine)
    part = {"n_fetched_bytes": 3 << 20, "n_fetch_bytes": 8 << 20}
    fetching = EngineProcessFactory(name="fetching", state="fetching", **part)
    ReplicaFactory(deployment=DeploymentFactory(name="new"), index=0, engine_process=fetching)
    ready = EngineProcessFactory(name="gone", ready=True, socket_path=str(var / "e1-1.sock"))
    ReplicaFactory(deployment=DeploymentFactory(name="gone"), index=0, engine_process=ready)
    assert sorted(told(processes.look_at_engines())) == [
        ("engine backing_off", "failure", "is backing off. killed"),
        ("engine failed", "failure", "is failed. no such model"),
        ("engine fetching", "warning", "waits for its files: 3.0\xa0MB of 8.0\xa0MB fetched"),
        ("engine gone", "failure", f"{var / 'e1-1.sock'}: No such file or directory"),
        ("engine none", "failure", "0 of 1 replicas have been made"),
        ("engine starting", "warning", "is starting."),
    ]


async def test_an_engine_makes_a_round_trip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as harness:
        found = await processes.engine_asked("engine", harness.path, epoch=EPOCH)
        assert found.status == "ok"
        assert re.match(rf"pid {os.getpid()} answers in [0-9.]+ ms: ", found.seen)
        other = await processes.engine_asked("engine", harness.path, epoch=EPOCH + 1)
        assert other.status == "failure"
        assert other.seen == f"does not answer: epoch {EPOCH} answered, not {EPOCH + 1}"
        harness.path.chmod(0o666)
        found = await processes.engine_asked("engine", harness.path, epoch=EPOCH)
        assert (found.status, found.seen) == ("failure", f"others may reach {harness.path}")
    monkeypatch.setattr(processes, "_ENGINE_TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:  # it accepts, as a stopped process does
        silent.bind(str(tmp_path / "silent.sock"))
        (tmp_path / "silent.sock").chmod(0o600)
        silent.listen()
        found = await processes.engine_asked("engine", tmp_path / "silent.sock", epoch=1)
    assert (found.status, found.seen[:25]) == ("failure", "does not answer: no answe")
    (tmp_path / "file.sock").touch()
    found = await processes.engine_asked("engine", tmp_path / "file.sock", epoch=1)
    assert (found.status, found.seen) == ("failure", f"{tmp_path / 'file.sock'} is no socket")
