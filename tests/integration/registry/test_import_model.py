"""Importing through the platform: the child process, the rows, the audit, and every way to fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import OperationalError

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.registry.exceptions import ModelImportError, ModelImportRunning
from apps.registry.importing import ConversionLimits, run_conversion
from apps.registry.models import ModelVersion, RegisteredModel
from apps.registry.services import import_model
from apps.registry.types import AlreadyImported, ImportEvent, ImportProgress, SourceIdentified
from apps.registry.vocabularies import vocabulary_sha256
from engine_service.models.manifest import hash_file, verify_manifest
from tests.models import ROOT
from tests.rows import all_of
from tests.unit.convert.builders import hugging_face_dir, llama_gguf

pytestmark = pytest.mark.django_db


@pytest.fixture
def models_dir(tmp_path: Path, settings: Any) -> Path:
    settings.MODELS_DIR = tmp_path / "models"
    return tmp_path / "models"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(llama_gguf())
    return path


def assert_nothing_registered() -> None:
    assert not RegisteredModel.objects.exists()
    assert not ModelVersion.objects.exists()
    assert not all_of(AuditEvent).exclude(action__startswith="import_job.").exists()


def test_an_import_makes_files_rows_and_events(
    models_dir: Path, source: Path, actor: Actor
) -> None:
    events: list[ImportEvent] = []
    version = import_model(name="tiny", source_path=source, actor=actor, on_event=events.append)
    version.refresh_from_db()
    directory = models_dir / version.path
    manifest = verify_manifest(directory)
    assert (version.model.name, version.version, version.path) == ("tiny", 1, "tiny/1")
    assert (version.source, version.source_sha256) == ("tiny.gguf", hash_file(source))
    assert (version.architecture, version.dtype, version.license) == (
        "LlamaForCausalLM",
        "float32",
        "mit",
    )
    assert version.n_parameters == manifest.n_parameters
    assert (version.context_length, version.vocab_size) == (128, manifest.vocab_size)
    assert version.manifest == json.loads((directory / "manifest.json").read_text())
    assert version.manifest_sha256 == hash_file(directory / "manifest.json")
    assert version.size_bytes == sum(path.stat().st_size for path in directory.iterdir())
    assert version.vocabulary_sha256 == vocabulary_sha256(directory / "tokenizer.json") != ""
    assert events[0] == SourceIdentified(name="tiny.gguf", sha256=version.source_sha256)
    assert ImportProgress(stage="convert", done=11, total=11) in events
    assert list(all_of(AuditEvent).order_by("pk").values_list("action", "actor_label")) == [
        ("registered_model.created", "alice"),
        ("model_version.imported", "alice"),
    ]


def test_the_same_artifact_is_imported_once(models_dir: Path, source: Path, actor: Actor) -> None:
    first = import_model(name="tiny", source_path=source, actor=actor)
    events: list[ImportEvent] = []
    again = import_model(name="tiny", source_path=source, actor=actor, on_event=events.append)
    assert again == first
    assert events[-1] == AlreadyImported(version=1)
    assert ModelVersion.objects.count() == 1
    assert all_of(AuditEvent).count() == 2
    assert sorted(path.name for path in (models_dir / "tiny").iterdir()) == [".import-lock", "1"]


def test_another_artifact_is_the_next_version(models_dir: Path, source: Path, actor: Actor) -> None:
    import_model(name="tiny", source_path=source, actor=actor)
    source.write_bytes(llama_gguf({"general.license": "apache-2.0"}))
    version = import_model(name="tiny", source_path=source, actor=actor)
    assert (version.version, version.path, version.license) == (2, "tiny/2", "apache-2.0")
    assert RegisteredModel.objects.count() == 1


def test_an_artifact_whose_files_are_gone_is_imported_anew(
    models_dir: Path, source: Path, actor: Actor
) -> None:
    first = import_model(name="tiny", source_path=source, actor=actor)
    shutil.rmtree(models_dir / first.path)
    version = import_model(name="tiny", source_path=source, actor=actor)
    assert version.version == 2
    verify_manifest(models_dir / version.path)


def test_files_that_were_never_registered_make_way(
    models_dir: Path, source: Path, actor: Actor
) -> None:
    (models_dir / "tiny" / "1").mkdir(parents=True)
    (models_dir / "tiny" / "1" / "manifest.json").write_text("{}")
    version = import_model(name="tiny", source_path=source, actor=actor)
    assert version.version == 1
    verify_manifest(models_dir / version.path)


def test_a_refused_artifact_leaves_nothing(models_dir: Path, source: Path, actor: Actor) -> None:
    source.write_bytes(llama_gguf({"general.architecture": "mamba"}))
    with pytest.raises(ModelImportError, match="'mamba' is not supported") as caught:
        import_model(name="tiny", source_path=source, actor=actor)
    assert caught.value.param == "general.architecture"
    assert list(models_dir.iterdir()) == []
    assert_nothing_registered()


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "a b", "x" * 121])
def test_a_bad_name_is_refused_before_anything_happens(
    models_dir: Path, source: Path, actor: Actor, name: str
) -> None:
    with pytest.raises(ValidationError):
        import_model(name=name, source_path=source, actor=actor)
    assert not models_dir.exists()
    assert_nothing_registered()


def test_a_listener_that_raises_cancels(models_dir: Path, source: Path, actor: Actor) -> None:
    def cancel(event: ImportEvent) -> None:
        if isinstance(event, ImportProgress):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_model(name="tiny", source_path=source, actor=actor, on_event=cancel)
    assert list(models_dir.iterdir()) == []
    assert_nothing_registered()
    assert import_model(name="tiny", source_path=source, actor=actor).version == 1


def test_two_imports_of_one_model_do_not_meet(models_dir: Path, source: Path, actor: Actor) -> None:
    def import_again(event: ImportEvent) -> None:
        with pytest.raises(ModelImportRunning):
            import_model(name="tiny", source_path=source, actor=actor)

    version = import_model(name="tiny", source_path=source, actor=actor, on_event=import_again)
    assert version.version == 1


def test_files_go_when_the_rows_cannot_be_written(
    models_dir: Path, source: Path, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise OperationalError("the disk is full")

    monkeypatch.setattr("apps.registry.services.event_record", fail)
    with pytest.raises(OperationalError):
        import_model(name="tiny", source_path=source, actor=actor)
    assert list(models_dir.iterdir()) == []
    assert_nothing_registered()


def conversion(source: Path, output: Path, **limits: Any) -> Any:
    return run_conversion(
        source=source, output=output, project_root=ROOT, limits=ConversionLimits(**limits)
    )


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"file_bytes": 10_000}, "File too large"),
        ({"memory_bytes": 64 << 20}, "The converter ended with"),
        ({"cpu_s": 0}, "The converter ended with signal"),
        ({"time_s": 0.01}, "took too long"),
    ],
)
def test_limits_end_the_child_and_leave_nothing(
    tmp_path: Path, source: Path, limits: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelImportError, match=says):
        list(conversion(source, tmp_path / "out", **limits))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def large_source(tmp_path: Path) -> Path:
    """An archive that takes some time to unpack."""
    path = tmp_path / "large.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("model.gguf", "w") as file,
    ):
        for _ in range(512):
            file.write(os.urandom(1 << 15) + bytes(31 << 15))
    return path


def test_a_killed_child_is_an_error(tmp_path: Path, large_source: Path) -> None:
    with closing(conversion(large_source, tmp_path / "out")) as events:
        next(events)
        (child,) = _converters()
        os.kill(child, signal.SIGKILL)
        with pytest.raises(ModelImportError, match="signal 9"):
            list(events)
    assert [path.name for path in tmp_path.iterdir()] == ["large.zip"]


def test_closing_ends_the_child_which_cleans_up(tmp_path: Path, large_source: Path) -> None:
    events = conversion(large_source, tmp_path / "out")
    for event in events:
        if isinstance(event, ImportProgress):
            break
    (child,) = _converters()
    events.close()
    assert not Path(f"/proc/{child}").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["large.zip"]


def _converters() -> list[int]:
    """This process may have other children, which tests share."""
    children = psutil.Process().children()
    return [each.pid for each in children if "engine_service.convert" in each.cmdline()]


def test_the_importing_process_loads_no_engine() -> None:
    code = (
        "import sys; import apps.registry.importing; "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "{'torch', 'transformers', 'engine_service'}])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


def test_the_command_imports_and_says_when_it_is_there(models_dir: Path, source: Path) -> None:
    out, err = StringIO(), StringIO()
    call_command("import_model", str(source), "--name", "tiny", stdout=out, stderr=err)
    assert out.getvalue().startswith(
        "tiny.gguf imported as tiny v1: LlamaForCausalLM, 17,696 parameters, float32, "
    )
    assert "convert 100 %" in err.getvalue()
    again = StringIO()
    call_command("import_model", str(source), "--name", "tiny", stdout=again, stderr=err)
    assert again.getvalue().startswith("tiny.gguf is already there as tiny v1")


@pytest.mark.parametrize(
    ("source_name", "name", "says"),
    [
        ("absent.gguf", "tiny", "neither a file nor a directory"),
        ("tiny.gguf", "a/b", "letters, digits"),
        ("weights.bin", "tiny", r"pickled checkpoint.*\(weights.bin\)"),
    ],
)
def test_the_command_fails_with_one_clear_line(
    models_dir: Path, source: Path, source_name: str, name: str, says: str
) -> None:
    (source.parent / "weights.bin").write_bytes(b"x")
    with pytest.raises(CommandError, match=says):
        call_command("import_model", str(source.parent / source_name), "--name", name)
    assert_nothing_registered()


def test_the_model_card_of_an_artifact_is_kept(
    models_dir: Path, tmp_path: Path, actor: Actor
) -> None:
    source = hugging_face_dir(tmp_path / "tiny")
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Tiny <b>")
    version = import_model(name="tiny", source_path=source, actor=actor)
    assert (version.license, version.stage) == ("mit", "draft")
    assert version.model_card == "---\nlicense: mit\n---\n# Tiny <b>"
