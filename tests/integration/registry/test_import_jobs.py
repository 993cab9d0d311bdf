"""Imports as jobs: from a root, by an upload, cancelled, refused; and what is written of them."""

import os
import tarfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.core.exceptions import AppError, InvalidRequest
from apps.registry import import_jobs, import_running, import_sources, tasks
from apps.registry.exceptions import ImportNotCancellable, UploadOutOfStep, UploadTooLarge
from apps.registry.models import ImportJob, ModelVersion
from apps.registry.types import ImportEvent, ImportProgress
from engine_service.models.manifest import hash_file
from tests.integration.registry.places import (
    ANN,
    Places,
    again,
    job_below_root,
    job_uploading,
    uploaded,
    work,
)
from tests.rows import all_of
from tests.unit.convert.builders import llama_gguf
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def actions() -> list[tuple[str, str]]:
    return list(all_of(AuditEvent).order_by("pk").values_list("action", "actor_label"))


def test_a_file_below_a_root_becomes_a_version(places: Places, gguf: Path) -> None:
    sha256 = hash_file(gguf)
    job = job_below_root("tiny.gguf", sha256=sha256.upper())
    assert (job.status, job.source) == ("queued", str(gguf))
    work()
    job = again(job)
    version = ModelVersion.objects.get()
    assert (job.status, job.model_version, job.error) == ("done", version, "")
    assert (job.source_sha256, job.n_attempts, job.lease_owner) == (sha256, 1, "")
    assert (job.stage, job.stage_total) == ("convert", 11)
    assert [line[9:] for line in job.log.splitlines()][1:] == ["read tiny.gguf", "done"]
    assert job.ended_at is not None and job.started_at is not None
    assert actions() == [
        ("import_job.created", "ann"),
        ("registered_model.created", "ann"),
        ("model_version.imported", "ann"),
    ]
    assert gguf.exists()
    places.check()


def test_a_file_that_is_uploaded_becomes_a_version_and_goes(places: Places) -> None:
    data = llama_gguf()
    job = uploaded(job_uploading(), data, filename="C:\\models\\tiny.gguf")
    assert (job.status, job.n_received_bytes, job.source) == ("queued", len(data), "tiny.gguf")
    stored = places.uploads / job.job_id / "tiny.gguf"
    assert stored.read_bytes() == data
    assert (stored.stat().st_mode & 0o777, places.uploads.stat().st_mode & 0o777) == (0o600, 0o700)
    assert job.source_sha256 == hash_file(stored)
    work()
    assert again(job).status == "done"
    assert ModelVersion.objects.get().source == "tiny.gguf"
    places.check()


def test_a_process_that_comes_late_hashes_the_same(places: Places) -> None:
    data = llama_gguf()
    job = import_jobs.import_upload_begin(
        job=job_uploading(), filename="tiny.gguf", size_bytes=len(data)
    )
    job = import_jobs.import_upload_append(job=job, offset=0, data=data[:5000])
    import_sources._hashes.forget(job.job_id)
    job = import_jobs.import_upload_append(job=job, offset=5000, data=data[5000:])
    assert job.source_sha256 == hash_file(places.uploads / job.job_id / "tiny.gguf")


@pytest.mark.parametrize(
    "source",
    ["", ".", "..", "../secret.gguf", "/etc/passwd", "out.gguf", "out/secret.gguf", "ring",
     "absent.gguf", "a\0b", "x" * 5000],
)  # fmt: skip
def test_what_lies_elsewhere_cannot_be_named(places: Places, source: str) -> None:
    (places.tmp / "secret.gguf").write_bytes(llama_gguf())
    (places.root / "out.gguf").symlink_to(places.tmp / "secret.gguf")
    (places.root / "out").symlink_to(places.tmp)
    (places.root / "ring").symlink_to(places.root / "ring")
    with pytest.raises(InvalidRequest) as caught:
        job_below_root(source)
    assert (caught.value.param, caught.value.message) == (
        "source",
        f"There is no such file or folder below {places.root}.",
    )
    assert not ImportJob.objects.exists()
    assert actions() == []


def test_a_link_that_comes_later_leads_nowhere(places: Places, gguf: Path) -> None:
    job = job_below_root("tiny.gguf")
    gguf.rename(places.tmp / "secret.gguf")
    gguf.symlink_to(places.tmp / "secret.gguf")
    work()
    assert (again(job).status, job.error_param) == ("failed", "source")
    assert not ModelVersion.objects.exists()
    places.check()


@pytest.mark.parametrize("fields", [{"name": "../x"}, {"sha256": "zz"}])
def test_a_name_or_hash_that_is_none_is_refused(
    places: Places, gguf: Path, fields: dict[str, str]
) -> None:
    with pytest.raises(ValidationError):
        job_below_root("tiny.gguf", **fields)
    assert not ImportJob.objects.exists()


def test_a_refusal_says_what_and_leaves_nothing(places: Places) -> None:
    job = uploaded(
        job_uploading(), llama_gguf({"general.architecture": "mamba"}), filename="a.gguf"
    )
    work()
    assert (again(job).status, job.error_param) == ("failed", "general.architecture")
    assert job.error == "architecture 'mamba' is not supported; 'llama' is"
    assert actions()[-1] == ("import_job.failed", "system")
    assert not ModelVersion.objects.exists()
    places.check()


def test_a_name_that_is_no_text_is_told_all_the_same(places: Places) -> None:
    (places.root / os.fsdecode(b"\xff.gguf")).touch()
    with tarfile.open(places.root / "odd.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("../a\udcff"))
    assert import_sources.sources_below_roots() == ["odd.tar"]
    job = job_below_root("odd.tar")
    work()
    assert (again(job).status, job.error_param) == ("failed", r"../a\udcff")
    assert "leads outside" in job.error
    places.check()


def test_an_upload_with_another_hash_is_refused_before_it_is_read(places: Places) -> None:
    job = uploaded(job_uploading(sha256="0" * 64), llama_gguf(), filename="tiny.gguf")
    assert (job.status, job.error_param) == ("failed", "sha256")
    assert f"{'0' * 64} is expected" in job.error
    assert job.n_attempts == 0
    places.check()


@pytest.mark.parametrize(
    "filename", ["", "a.bin", "model.pt", "..", ".gguf/", "a b.gguf", ".a.gguf", "é.gguf", "a.exe"]
)
def test_a_file_that_is_no_model_is_not_taken(places: Places, filename: str) -> None:
    job = job_uploading()
    with pytest.raises(InvalidRequest, match="cannot be imported") as caught:
        import_jobs.import_upload_begin(job=job, filename=filename, size_bytes=10)
    assert caught.value.param == "file"
    assert (again(job).status, job.source) == ("uploading", "")
    assert not places.uploads.exists()


def test_there_must_be_room_beside_what_others_bring(
    places: Places, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": import_sources.SPARE_BYTES + 1000})
    monkeypatch.setattr("apps.registry.import_sources.shutil.disk_usage", lambda path: usage)
    begin = import_jobs.import_upload_begin
    first, second = job_uploading(), job_uploading(name="other")
    begin(job=first, filename="a.gguf", size_bytes=600)
    with pytest.raises(UploadTooLarge, match="the disk has room for 400"):
        begin(job=second, filename="a.gguf", size_bytes=401)
    assert again(second).size_bytes == 0
    begin(job=second, filename="a.gguf", size_bytes=400)
    settings.IMPORT_MAX_UPLOAD_BYTES = 100
    with pytest.raises(UploadTooLarge, match="IMPORT_MAX_UPLOAD_BYTES allows 100"):
        begin(job=second, filename="b.gguf", size_bytes=101)


def test_pieces_come_in_order_and_no_longer_than_was_said(places: Places) -> None:
    append = import_jobs.import_upload_append
    job = job_uploading()
    with pytest.raises(InvalidRequest, match="empty"):
        import_jobs.import_upload_begin(job=job, filename="a.gguf", size_bytes=0)
    job = import_jobs.import_upload_begin(job=job, filename="a.gguf", size_bytes=10)
    for offset, data, kind in (
        (5, b"x", UploadOutOfStep),
        (0, b"", InvalidRequest),
        (0, b"x" * 11, InvalidRequest),
    ):
        with pytest.raises(kind):
            append(job=job, offset=offset, data=data)
        assert again(job).n_received_bytes == 0
    job = append(job=job, offset=0, data=b"x" * 4)
    with pytest.raises(UploadOutOfStep, match="goes on at byte 4"):
        append(job=job, offset=0, data=b"x" * 4)
    # The same file again goes on, another one begins anew.
    begin = import_jobs.import_upload_begin
    assert begin(job=job, filename="a.gguf", size_bytes=10).n_received_bytes == 4
    job = begin(job=job, filename="b.gguf", size_bytes=6)
    assert job.n_received_bytes == 0
    assert not (places.uploads / job.job_id).exists()
    job = append(job=job, offset=0, data=b"y" * 6)
    with pytest.raises(UploadOutOfStep, match="waits for no file"):
        append(job=job, offset=6, data=b"y")


def test_whoever_waits_is_cancelled_at_once(places: Places, gguf: Path) -> None:
    queued = job_below_root("tiny.gguf")
    arriving = import_jobs.import_upload_begin(
        job=job_uploading(), filename="a.gguf", size_bytes=10
    )
    arriving = import_jobs.import_upload_append(job=arriving, offset=0, data=b"x")
    for job in (queued, arriving):
        assert import_jobs.import_job_cancel(job=job, actor=ANN).status == "cancelled"
        with pytest.raises(ImportNotCancellable, match="is cancelled"):
            import_jobs.import_job_cancel(job=job, actor=ANN)
    work()
    assert [again(job).status for job in (queued, arriving)] == ["cancelled", "cancelled"]
    assert actions()[-2:] == [("import_job.cancelled", "ann")] * 2
    places.check()


def test_what_runs_is_cancelled_where_it_is(places: Places, gguf: Path) -> None:
    job = job_below_root("tiny.gguf")
    claim = import_running.import_claim(pk=job.pk, owner="me")
    assert claim is not None

    def cancel(event: ImportEvent) -> None:
        if isinstance(event, ImportProgress):
            import_jobs.import_job_cancel(job=job, actor=ANN)
            import_jobs.import_job_cancel(job=job, actor=ANN)

    import_running.import_run(claim=claim, on_event=_first(cancel, watch_anew=claim))
    assert again(job).status in ("cancelled", "cancelling")
    import_running.imports_work(is_stopping=lambda: False)
    places.check()


def _first(act: Any, *, watch_anew: Any) -> Any:
    """Act on an event, then look as the worker does a second later."""

    def on_event(event: ImportEvent) -> None:
        act(event)
        import_running._Watch(
            watch_anew, is_stopping=lambda: False, on_event=lambda event: None
        ).look()

    return on_event


def test_a_worker_that_is_told_to_stop_lets_the_job_go(places: Places, gguf: Path) -> None:
    job = job_below_root("tiny.gguf")
    claim = import_running.import_claim(pk=job.pk, owner="me")
    assert claim is not None
    import_running.import_run(claim=claim, is_stopping=lambda: True)
    assert (again(job).status, job.n_attempts, job.lease_until) == ("queued", 0, None)
    work()
    assert again(job).status == "done"


def test_a_job_is_one_workers_and_who_lost_it_writes_nothing(places: Places, gguf: Path) -> None:
    job = job_below_root("tiny.gguf")
    first = import_running.import_claim(pk=job.pk, owner="first")
    assert first is not None
    assert import_running.import_claim(pk=job.pk, owner="second") is None
    past = timezone.now() - timedelta(seconds=1)
    ImportJob.objects.update(lease_until=past)
    assert import_running.import_claim(pk=job.pk, owner="second") is not None
    before = ImportJob.objects.values().get()
    import_running.import_run(claim=first)
    assert ImportJob.objects.values().get() == before
    places.check()


def test_a_job_that_workers_die_of_is_given_up(places: Places, gguf: Path) -> None:
    job = job_below_root("tiny.gguf")
    (places.models / "tiny" / ".1.partial" / "model").mkdir(parents=True)
    past = timezone.now() - timedelta(seconds=1)
    ImportJob.objects.update(status="running", n_attempts=5, lease_owner="x", lease_until=past)
    work()
    assert (again(job).status, job.n_attempts) == ("failed", 6)
    assert "5 workers ended in the middle of it" in job.error
    places.check()


def test_a_job_that_was_to_end_when_its_worker_died_ends(places: Places, gguf: Path) -> None:
    job = job_below_root("tiny.gguf")
    (places.models / "tiny" / ".1.partial" / "model").mkdir(parents=True)
    past = timezone.now() - timedelta(seconds=1)
    ImportJob.objects.update(status="running", lease_owner="x", lease_until=past)
    import_jobs.import_job_cancel(job=job, actor=ANN)
    work()
    assert again(job).status == "cancelled"
    places.check()


def test_uploads_that_stop_and_what_nobody_owns_are_reaped(places: Places) -> None:
    stale = uploaded(job_uploading(), b"x" * 10, filename="a.gguf", n_pieces=1)
    assert stale.status == "queued"
    arriving = import_jobs.import_upload_begin(
        job=job_uploading(), filename="a.gguf", size_bytes=10
    )
    import_jobs.import_upload_append(job=arriving, offset=0, data=b"x")
    (places.uploads / "import-of-nobody").mkdir()
    import_jobs.import_uploads_reap()
    assert sorted(path.name for path in places.uploads.iterdir()) == sorted(
        [stale.job_id, arriving.job_id]
    )
    ImportJob.objects.filter(pk=arriving.pk).update(
        updated_at=timezone.now() - timedelta(minutes=61)
    )
    import_jobs.import_uploads_reap()
    assert (again(arriving).status, arriving.error_param) == ("failed", "file")
    assert [path.name for path in places.uploads.iterdir()] == [stale.job_id]


def test_two_imports_of_a_model_take_turns(places: Places, gguf: Path) -> None:
    first, second = job_below_root("tiny.gguf"), job_below_root("tiny.gguf")
    claim = import_running.import_claim(pk=first.pk, owner="first")
    assert claim is not None

    def meanwhile(event: ImportEvent) -> None:
        other = import_running.import_claim(pk=second.pk, owner="second")
        if other is not None:
            import_running.import_run(claim=other)

    import_running.import_run(claim=claim, on_event=meanwhile)
    assert (again(first).status, again(second).status, second.n_attempts) == ("done", "queued", 0)
    assert second.lease_until is not None and second.lease_until > timezone.now()
    ImportJob.objects.filter(pk=second.pk).update(lease_until=None)
    work()
    assert again(second).model_version == again(first).model_version
    assert "it is version 1 already" in second.log
    places.check()


def test_the_task_returns_at_once_and_its_thread_works(places: Places, gguf: Path) -> None:
    job = job_below_root("tiny.gguf")
    tasks.reap()
    wait_until("the version", lambda: again(job).status == "done", timeout_s=60)
    wait_until("the thread to end", lambda: not tasks._importer.is_busy)
    tasks.work()  # there is nothing to do
    wait_until("the thread to end", lambda: not tasks._importer.is_busy)
    places.check()


def test_errors_are_of_the_one_family() -> None:
    for kind in (UploadOutOfStep, UploadTooLarge, ImportNotCancellable):
        assert issubclass(kind, AppError)
        assert 400 <= kind.status < 500
