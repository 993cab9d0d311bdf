"""`kill -9` of the converter and of the worker at each stage of an import: the job is taken up
again or ends, and the disk and the database say the same."""

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest
from django.utils import timezone

from apps.registry import import_running
from apps.registry.models import ImportJob, ModelVersion
from apps.registry.types import ImportEvent, ImportProgress, SourceIdentified
from tests.integration.registry.places import Places, again, job_uploading, uploaded, work
from tests.processes import ROOT, server_environment
from tests.unit.convert.builders import llama_gguf
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

STAGES = ["claimed", "source", "unpack", "convert", "done", "registered"]
# A worker that kills itself when a stage begins.
WORKER = """
import os, signal, sys
import django; django.setup()
from apps.registry import import_running
from apps.registry.types import ConversionDone, ImportProgress, SourceIdentified

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def on_event(event):
    match event:
        case SourceIdentified(): at = "source"
        case ImportProgress(stage=stage): at = stage
        case ConversionDone(): at = "done"
        case _: at = ""
    if at == sys.argv[1]:
        die()

claim = import_running.import_claim_next(owner="doomed")
if sys.argv[1] == "claimed":
    die()
if sys.argv[1] == "registered":
    import_running._ended = die
import_running.import_run(claim=claim, on_event=on_event)
"""


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    """A tiny model with much after it, so that unpacking takes a while."""
    path = tmp_path / "tiny.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny.gguf", llama_gguf() + bytes(48 << 20))
    return path.read_bytes()


def converters(places: Places) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "engine_service.convert" in command and any(str(places.tmp) in each for each in command):
            found.append(process)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_the_worker_dies(places: Places, archive: bytes, stage: str) -> None:
    job = uploaded(job_uploading(), archive, filename="tiny.zip")
    doomed = subprocess.run(
        [sys.executable, "-c", WORKER, stage],
        cwd=ROOT,
        env={
            **os.environ,
            **server_environment(),
            "MODELS_DIR": str(places.models),
            "IMPORT_UPLOADS_DIR": str(places.uploads),
            "IMPORT_LEASE_S": "2",
        },
        timeout=120,
    )
    assert doomed.returncode == -signal.SIGKILL
    assert again(job).status == "running"
    assert ModelVersion.objects.count() == (1 if stage == "registered" else 0)
    assert not import_running.claimable(job.lease_until).exists()
    # Its converter hears of it by itself.
    wait_until("the converter to be gone", lambda: not converters(places), timeout_s=30)
    assert not list(places.models.glob("*/.*.partial"))
    wait_until("the lease to end", lambda: import_running.claimable(timezone.now()).exists())
    work()
    assert (again(job).status, job.n_attempts, job.error) == ("done", 2, "")
    version = ModelVersion.objects.get()
    assert (job.model_version, version.version, version.source) == (version, 1, "tiny.zip")
    places.check()
    assert list(places.uploads.iterdir()) == []


@pytest.mark.parametrize("stage", ["source", "unpack", "convert"])
def test_the_converter_dies(places: Places, archive: bytes, stage: str) -> None:
    job = uploaded(job_uploading(), archive, filename="tiny.zip")
    claim = import_running.import_claim_next(owner="me")
    assert claim is not None
    killed: list[int] = []

    def kill(event: ImportEvent) -> None:
        at = event.stage if isinstance(event, ImportProgress) else "source"
        if at != stage or killed or not isinstance(event, ImportProgress | SourceIdentified):
            return
        for process in converters(places):
            process.kill()
            killed.append(process.pid)

    import_running.import_run(claim=claim, on_event=kill)
    assert again(job).status in ("failed", "done")
    if stage != "convert":  # of so small a model, that may be over when it is heard of
        assert (job.status, len(killed)) == ("failed", 1)
    if job.status == "failed":
        assert job.error.startswith("The converter ended with signal 9")
    assert ModelVersion.objects.count() == (1 if job.status == "done" else 0)
    places.check()
    assert list(places.uploads.iterdir()) == []
    assert not ImportJob.objects.filter(status__in=ImportJob.OPEN).exists()
