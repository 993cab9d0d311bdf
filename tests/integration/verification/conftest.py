"""A version with real files behind it, and a VAR of its own for scratch engines."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from apps.registry.models import ModelVersion, VerificationRun
from tests.factories import ModelVersionFactory
from tests.models import random_bert_dir, random_llama_dir

MakeVersion = Callable[[Path], ModelVersion]


@pytest.fixture
def var(tmp_path: Path, settings: Any) -> Iterator[Path]:
    """VAR and MODELS_DIR; afterwards no scratch engine and no directory of one may be left."""
    settings.VAR_DIR = tmp_path
    settings.MODELS_DIR = tmp_path / "models"
    settings.MODELS_DIR.mkdir()
    yield tmp_path
    assert engines_of(tmp_path) == []
    assert list(tmp_path.glob("scratch/*/")) == []


def engines_of(var: Path) -> list[int]:
    """The pids of engines whose model lies below ``var``."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if "engine_service" in words and any(word.startswith(f"{var}/") for word in words):
            found.append(process.pid)
    return found


def fresh(run: VerificationRun) -> VerificationRun:
    return VerificationRun.objects.select_related("version").get(pk=run.pk)


@pytest.fixture
def make_version(var: Path) -> MakeVersion:
    """Put a model directory where models are, and make its version."""

    def make(source: Path) -> ModelVersion:
        directory = var / "models" / source.name
        shutil.copytree(source, directory)
        manifest = json.loads((directory / "manifest.json").read_text())
        return ModelVersionFactory(
            path=source.name,
            architecture=manifest["architecture"],
            manifest=manifest,
            manifest_sha256=hashlib.sha256((directory / "manifest.json").read_bytes()).hexdigest(),
        )

    return make


@pytest.fixture(scope="session")
def even_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights so small that it is hardly worse than a guess."""
    directory = tmp_path_factory.mktemp("even")
    return random_llama_dir(directory, initializer_range=0.1, tie_word_embeddings=False)


@pytest.fixture(scope="session")
def wild_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights so large that it is sure of nonsense."""
    directory = tmp_path_factory.mktemp("wild")
    return random_llama_dir(directory, initializer_range=0.4, tie_word_embeddings=False)


@pytest.fixture(scope="session")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_bert_dir(tmp_path_factory.mktemp("bert"))
