"""Imports to a real object storage, and what is left of them: nothing but whole versions, whoever
is killed, cancelled or refused at whichever step."""

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.exceptions import Unavailable
from apps.registry import storing
from apps.registry.artifacts import artifact_upload
from apps.registry.exceptions import ArtifactAltered, ModelImportRunning, StorageAway
from apps.registry.models import LooseFolder, ModelVersion
from apps.registry.selectors import chat_template, model_shape, remote_storage, version_dir
from apps.registry.services import import_model, model_version_delete
from apps.registry.storing import folders_sweep
from apps.registry.types import AlreadyImported, ImportEvent, ImportProgress
from tests.integration.registry.places import Places, again, job_below_root, work
from tests.object_storage import KEYS, ObjectStorage
from tests.processes import ROOT, server_environment
from tests.rows import all_of
from tests.unit.convert.builders import TEMPLATE
from tests.wide_model import wide_model_dir

pytestmark = pytest.mark.django_db(transaction=True)


def check(places: Places, storage: ObjectStorage) -> None:
    """The storage has the files of the versions that there are, and nothing else is anywhere."""
    expected = [
        f"{version.path}/{name}"
        for version in ModelVersion.objects.all()
        for name in (*version.manifest["files"], "manifest.json")
    ]
    assert storage.objects() == sorted(expected)
    assert storage.n_uploads_open() == 0
    assert not LooseFolder.objects.exists()
    assert {path.name for path in places.models.glob("*/*")} <= {".import-lock"}


def test_a_version_goes_to_the_storage_and_nothing_stays_here(
    places: Places, gguf: Path, object_storage: ObjectStorage, actor: Actor
) -> None:
    events: list[ImportEvent] = []
    version = import_model(name="tiny", source_path=gguf, actor=actor, on_event=events.append)
    check(places, object_storage)
    assert version.path.startswith("tiny/1-")
    assert version_dir(version) is None
    uploaded = [e for e in events if isinstance(e, ImportProgress) and e.stage == "upload"]
    assert (uploaded[-1].done, uploaded[-1].total) == (version.size_bytes, version.size_bytes)
    # What pages and placement ask is in the row.
    version.refresh_from_db()
    assert chat_template(version) == TEMPLATE
    shape = model_shape(version)
    assert shape is not None
    assert (shape.n_layers, shape.hidden_size) == (1, 32)
    again_events: list[ImportEvent] = []
    same = import_model(name="tiny", source_path=gguf, actor=actor, on_event=again_events.append)
    assert (same, again_events[-1]) == (version, AlreadyImported(version=1))
    check(places, object_storage)


def test_a_large_file_goes_in_parts(
    places: Places, object_storage: ObjectStorage, tmp_path: Path, actor: Actor
) -> None:
    version = import_model(name="wide", source_path=wide_model_dir(tmp_path, mb=20), actor=actor)
    assert version.manifest["files"]["model.safetensors"]["size_bytes"] > 2 * 8 << 20
    check(places, object_storage)


def test_what_changes_on_the_disk_while_it_is_sent_is_refused(
    places: Places, gguf: Path, object_storage: ObjectStorage, tmp_path: Path, settings: Any,
    actor: Actor,
) -> None:  # fmt: skip
    remote, settings.STORAGES = (
        settings.STORAGES,
        settings.STORAGES | {"artifacts": {"BACKEND": "apps.registry.storage.ModelsDirectory"}},
    )
    version = import_model(name="tiny", source_path=gguf, actor=actor)
    settings.STORAGES = remote
    directory = places.models / version.path
    with (directory / "model.safetensors").open("r+b") as file:
        file.write(b"\0\0")
    with pytest.raises(ArtifactAltered, match=r"model\.safetensors changed on the disk"):
        artifact_upload(
            directory,
            path="tiny/x",
            manifest=version.manifest,
            manifest_sha256=version.manifest_sha256,
            on_bytes=lambda done, total: None,
        )


def test_a_storage_that_is_away_fails_the_import_and_leaves_nothing(
    places: Places, gguf: Path, object_storage: ObjectStorage
) -> None:
    object_storage.gate.shut()
    job = job_below_root(str(gguf))
    work()
    assert again(job).status == "failed"
    assert job.error.startswith("The artifact storage does not answer: Could not connect")
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in job.error + job.log
    assert not ModelVersion.objects.exists()
    object_storage.gate.open()
    LooseFolder.objects.update(left_alone_until=timezone.now() - timedelta(seconds=1))
    folders_sweep()
    check(places, object_storage)


def test_keys_that_are_no_good_are_said_without_the_secret(
    object_storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage: Any = remote_storage()
    monkeypatch.setattr(storage, "bucket_name", "nobodys-bucket")
    with pytest.raises(StorageAway, match=r"says no: .*NoSuchBucket") as caught:
        storage.ask()
    assert isinstance(caught.value, Unavailable)
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_a_cancelled_upload_leaves_nothing(
    places: Places, object_storage: ObjectStorage, tmp_path: Path, actor: Actor
) -> None:
    class Enough(Exception):
        pass

    def cancel(event: ImportEvent) -> None:
        if isinstance(event, ImportProgress) and event.stage == "upload":
            raise Enough

    with pytest.raises(Enough):
        import_model(
            name="wide", source_path=wide_model_dir(tmp_path, mb=20), actor=actor, on_event=cancel
        )
    assert not ModelVersion.objects.exists()
    check(places, object_storage)


WORKER = """
import os, signal, sys
import django; django.setup()
from apps.registry import import_running, services, storing, artifacts
from apps.registry.types import ImportProgress

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def on_event(event):
    if sys.argv[1] == "sending" and isinstance(event, ImportProgress):
        if event.stage == "upload" and event.done > 8 << 20:
            die()

artifacts._LOOK_S = 0.01
if sys.argv[1] == "sent":
    services._register = die
if sys.argv[1] == "registered":
    import_running._ended = die
if sys.argv[1] == "begun":
    storing.artifact_upload = die
claim = import_running.import_claim_next(owner="doomed")
import_running.import_run(claim=claim, on_event=on_event)
"""


@pytest.mark.parametrize("step", ["begun", "sending", "sent", "registered"])
def test_a_worker_that_is_killed(places: Places, object_storage: ObjectStorage, step: str) -> None:
    source = wide_model_dir(places.root, mb=20)
    job = job_below_root(str(source), name="wide")
    doomed = subprocess.run(
        [sys.executable, "-c", WORKER, step],
        cwd=ROOT,
        env={
            **os.environ,
            **server_environment(),
            "MODELS_DIR": str(places.models),
            "IMPORT_ROOTS": str(places.root),
            "IMPORT_LEASE_S": "2",
        },
        timeout=120,
    )
    assert doomed.returncode == -signal.SIGKILL
    loose = list(LooseFolder.objects.values_list("path", flat=True))
    assert (len(loose), ModelVersion.objects.count()) == (
        (0, 1) if step == "registered" else (1, 0)
    )
    assert folders_sweep() == 0  # it may still be writing
    type(job).objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    work()
    assert again(job).status == "done"
    LooseFolder.objects.update(left_alone_until=timezone.now() - timedelta(seconds=1))
    assert folders_sweep() == len(loose)
    assert ModelVersion.objects.count() == 1
    check(places, object_storage)


def test_a_writer_whose_folder_is_swept_registers_nothing(
    places: Places, gguf: Path, object_storage: ObjectStorage, actor: Actor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One that slept for so long that it was thought dead."""

    def sleep(*args: Any, **kwargs: Any) -> None:
        artifact_upload(*args, **kwargs)
        LooseFolder.objects.update(left_alone_until=timezone.now() - timedelta(seconds=1))
        assert folders_sweep() == 1

    monkeypatch.setattr(storing, "artifact_upload", sleep)
    with pytest.raises(storing.ImportLeaseLost):
        import_model(name="tiny", source_path=gguf, actor=actor)
    assert not ModelVersion.objects.exists()
    check(places, object_storage)


def test_a_writer_that_is_alive_is_left_alone(
    places: Places, gguf: Path, object_storage: ObjectStorage, actor: Actor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(storing, "_RENEW", timedelta(0))
    monkeypatch.setattr(storing, "_WRITER_LIFE", timedelta(seconds=20))
    until: list[Any] = []

    def look(event: ImportEvent) -> None:
        if isinstance(event, ImportProgress) and event.stage == "upload":
            until.append(LooseFolder.objects.get().left_alone_until)
            assert folders_sweep() == 0

    import_model(name="tiny", source_path=gguf, actor=actor, on_event=look)
    assert until
    check(places, object_storage)


def test_files_of_a_deleted_version_go_now_or_later(
    places: Places, gguf: Path, object_storage: ObjectStorage, actor: Actor
) -> None:
    version = import_model(name="tiny", source_path=gguf, actor=actor)
    path = version.path
    object_storage.gate.shut()
    model_version_delete(version=version, actor=actor)
    assert not ModelVersion.objects.exists()
    assert LooseFolder.objects.get().path == path
    assert f"{path}/manifest.json" in object_storage.objects()
    assert folders_sweep() == 0  # not again at once
    LooseFolder.objects.create(path="tiny/x", left_alone_until=timezone.now())
    LooseFolder.objects.update(left_alone_until=timezone.now() - timedelta(seconds=1))
    assert folders_sweep() == 1  # the other one need not be tried to be known
    assert folders_sweep() == 0
    LooseFolder.objects.filter(path="tiny/x").delete()
    object_storage.gate.open()
    LooseFolder.objects.update(left_alone_until=timezone.now() - timedelta(seconds=1))
    assert folders_sweep() == 1
    assert object_storage.objects() == []
    second = import_model(name="tiny", source_path=gguf, actor=actor)
    assert second.version == 2  # a number means one artifact, for ever
    model_version_delete(version=second, actor=actor)
    check(places, object_storage)
    assert all_of(AuditEvent).filter(action="model_version.deleted").count() == 2


def test_two_machines_import_at_once(
    places: Places, gguf: Path, object_storage: ObjectStorage, actor: Actor, settings: Any,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    """Each has its own lock; the database lets one be the next version, the other tries again."""

    def meanwhile(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(storing, "artifact_upload", artifact_upload)
        settings.MODELS_DIR = tmp_path / "another-machine"
        import_model(name="tiny", source_path=wide_model_dir(tmp_path, mb=1), actor=actor)
        settings.MODELS_DIR = places.models
        artifact_upload(*args, **kwargs)

    monkeypatch.setattr(storing, "artifact_upload", meanwhile)
    with pytest.raises(ModelImportRunning):
        import_model(name="tiny", source_path=gguf, actor=actor)
    assert ModelVersion.objects.get().version == 1
    check(places, object_storage)
    assert import_model(name="tiny", source_path=gguf, actor=actor).version == 2
    check(places, object_storage)
