"""``doctor`` and ``backup`` where models are in an object storage."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from apps.audit.types import Actor
from apps.console.backup.installation import Installation
from apps.console.backup.restoring import backup_verify
from apps.console.doctor import artifacts, host
from apps.console.doctor.checks import CHECKS
from apps.console.doctor.findings import looked
from apps.registry.services import import_model
from tests.factories import DeploymentFactory, ModelVersionFactory
from tests.integration.maintenance.telling import told
from tests.object_storage import KEYS, ObjectStorage
from tests.unit.convert.builders import llama_gguf

pytestmark = pytest.mark.django_db


@pytest.fixture
def version(here: Installation, object_storage: ObjectStorage, tmp_path: Path, actor: Actor) -> Any:
    source = tmp_path / "tiny.gguf"
    source.write_bytes(llama_gguf())
    return import_model(name="small", source_path=source, actor=actor)


def test_the_doctor_asks_the_storage(version: Any, object_storage: ObjectStorage) -> None:
    ((name, status, seen),) = told(artifacts.look_at_storage())
    assert (name, status) == ("artifacts", "ok")
    assert seen.startswith(f"s3://{object_storage.bucket}/models answers, in ")
    ((_, status, seen),) = told(host.look_at_models())
    assert (status, seen[-11:]) == ("ok", "as imported")
    key = f"{version.path}/tokenizer.json"
    size = len(object_storage.read(key))
    object_storage.write(key, b"x")
    ((_, status, seen),) = told(host.look_at_models())
    place = f"s3://{object_storage.bucket}/models/{version.path}"
    assert (status, seen) == (
        "failure", f"{place}/tokenizer.json has 1 bytes, and {size} are listed",
    )  # fmt: skip
    object_storage.gate.shut()
    check = next(check for check in CHECKS if check.name == "artifacts")
    (finding,) = looked(check)
    assert finding.status == "failure"
    assert "does not answer" in finding.seen
    assert "ARTIFACTS_URL" in finding.remedy
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in finding.seen + finding.remedy


def test_the_doctor_reckons_the_node_cache(version: Any, settings: Any, tmp_path: Path) -> None:
    settings.NODE_CACHE_DIR = tmp_path / "node-cache"
    settings.NODE_CACHE_BYTES = version.size_bytes
    place = settings.NODE_CACHE_DIR
    assert told(artifacts.look_at_node_cache()) == [
        ("node cache", "ok", f"0.0 of 0.0 GB in use at {place}")
    ]
    DeploymentFactory(model_version=version)
    DeploymentFactory(model_version=version)  # of the same files
    DeploymentFactory(elsewhere=True)
    DeploymentFactory(model_version=ModelVersionFactory(size_bytes=0), draft_version=version)
    assert [status for _, status, _ in told(artifacts.look_at_node_cache())] == ["ok"]
    settings.NODE_CACHE_BYTES -= 10
    ((_, status, seen),) = told(artifacts.look_at_node_cache())
    assert status == "failure"
    assert seen.endswith(f"needs {version.size_bytes:,} bytes, 10 more than it may have")
    settings.NODE_CACHE_BYTES = shutil.disk_usage(tmp_path).total * 2
    assert [status for _, status, _ in told(artifacts.look_at_node_cache())] == ["warning"]


def test_where_a_directory_has_them_there_is_nothing_to_fetch(var: Path) -> None:
    assert told(artifacts.look_at_storage()) == [
        ("artifacts", "ok", f"are used in place, in {var / 'models'}")
    ]
    assert told(artifacts.look_at_node_cache()) == []


def test_a_backup_says_that_it_has_no_models(
    version: Any, here: Installation, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    object_storage: ObjectStorage,
) -> None:  # fmt: skip
    file = tmp_path / "backup.tar.gz"
    call_command("backup", str(file))
    assert capsys.readouterr().err == (
        f"The models are in s3://{object_storage.bucket}/models and stay there: none is in this "
        "file.\n"
    )
    manifest = backup_verify(file)
    assert "models" not in manifest.origin.parts
    assert not [each for each in manifest.members if each.name.startswith("models/")]
