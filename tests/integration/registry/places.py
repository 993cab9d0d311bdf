"""Where imports of a test lie, and whether the disk and the database say the same of them."""

from dataclasses import dataclass
from pathlib import Path

from apps.audit.types import Actor
from apps.registry.import_jobs import (
    import_job_create,
    import_upload_append,
    import_upload_begin,
)
from apps.registry.import_running import imports_work
from apps.registry.models import ImportJob, ModelVersion
from engine_service.models.manifest import verify_manifest

ANN = Actor(kind="user", id=7, label="ann")


@dataclass(frozen=True, slots=True)
class Places:
    tmp: Path

    @property
    def models(self) -> Path:
        return self.tmp / "models"

    @property
    def root(self) -> Path:
        return self.tmp / "imports"

    @property
    def uploads(self) -> Path:
        return self.tmp / "uploads"

    def check(self) -> None:
        """What the catalogue lists is there, whole; and nothing else is."""
        versions = list(ModelVersion.objects.all())
        for version in versions:
            verify_manifest(self.models / version.path)
        names = {version.path.partition("/")[0] for version in versions}
        expected = {version.path for version in versions} | {f"{n}/.import-lock" for n in names}
        found = {f"{p.parent.name}/{p.name}" for p in self.models.glob("*/*")}
        assert found | {f"{n}/.import-lock" for n in names} == expected
        assert {path.name for path in self.models.glob("*")} == names
        open_ids = ImportJob.objects.filter(status__in=ImportJob.OPEN).values_list("job_id")
        stored = {path.name for path in self.uploads.glob("*")}
        assert stored <= {job_id for (job_id,) in open_ids}


def job_below_root(source: str, *, name: str = "tiny", sha256: str = "") -> ImportJob:
    return import_job_create(
        model_name=name, kind="root", source=source, expected_sha256=sha256, actor=ANN
    )


def job_uploading(*, name: str = "tiny", sha256: str = "") -> ImportJob:
    return import_job_create(
        model_name=name, kind="upload", source="", expected_sha256=sha256, actor=ANN
    )


def uploaded(job: ImportJob, data: bytes, *, filename: str, n_pieces: int = 3) -> ImportJob:
    """Bring a file in pieces, as its page does."""
    job = import_upload_begin(job=job, filename=filename, size_bytes=len(data))
    size = -(-len(data) // n_pieces)
    for offset in range(0, len(data), size):
        job = import_upload_append(job=job, offset=offset, data=data[offset : offset + size])
    return job


def work() -> None:
    """Do what a worker does, until nothing waits."""
    imports_work(is_stopping=lambda: False)


def again(job: ImportJob) -> ImportJob:
    job.refresh_from_db()
    return job
