"""Artifacts from somebody who wishes us ill: each is refused by name, runs nothing, and leaves no
file and no row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.registry.exceptions import ModelImportError
from apps.registry.models import ModelVersion, RegisteredModel
from apps.registry.services import import_model
from tests.integration.registry.hostile import CORPUS, Hostile
from tests.rows import all_of
from tests.unit.convert.builders import llama_gguf

pytestmark = pytest.mark.django_db


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Every entry below, links not followed, with its size and when it was written."""
    return dict(_walk(root))


def _walk(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    for path in sorted(root.rglob("*")):
        found = path.lstat()
        is_folder = path.is_dir() and not path.is_symlink()
        yield (
            str(path.relative_to(root)),
            (0, 0)
            if is_folder
            else (
                found.st_size,
                found.st_mtime_ns,
            ),
        )


@pytest.fixture
def models_dir(tmp_path: Path, settings: Any) -> Path:
    settings.MODELS_DIR = tmp_path / "models"
    settings.MODELS_DIR.mkdir()
    return tmp_path / "models"


@pytest.mark.any_database  # each is refused before there is a row; the command below is as well
@pytest.mark.parametrize("hostile", CORPUS, ids=lambda each: each.name)
def test_it_is_refused_and_leaves_nothing(
    hostile: Hostile, tmp_path: Path, models_dir: Path, actor: Actor
) -> None:
    (tmp_path / "source").mkdir()
    source = hostile.build(tmp_path / "source")
    before = tree(tmp_path)
    with pytest.raises(ModelImportError) as caught:
        import_model(name="victim", source_path=source, actor=actor, expected_sha256=hostile.sha256)
    print(caught.value.message, caught.value.param)
    assert hostile.says in caught.value.message
    assert caught.value.param == hostile.field
    assert tree(tmp_path) == before
    assert not list(tmp_path.rglob("canary"))
    assert not Path("/tmp/canary").exists()
    assert not RegisteredModel.objects.exists()
    assert not ModelVersion.objects.exists()
    assert not all_of(AuditEvent).exists()


def test_the_corpus_is_large_and_its_names_differ() -> None:
    assert len({each.name for each in CORPUS}) == len(CORPUS) >= 50


def test_the_command_takes_the_hash_that_is_expected(tmp_path: Path, models_dir: Path) -> None:
    source = tmp_path / "tiny.gguf"
    source.write_bytes(llama_gguf())
    with pytest.raises(CommandError, match=r"is expected \(sha256\)"):
        call_command("import_model", str(source), "--name", "tiny", "--sha256", "0" * 64)
    assert not RegisteredModel.objects.exists()
