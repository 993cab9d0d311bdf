"""Places of a test's own for models, uploads and what may be imported."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.registry.places import Places
from tests.unit.convert.builders import llama_gguf


@pytest.fixture
def places(tmp_path: Path, settings: Any) -> Places:
    found = Places(tmp_path)
    found.root.mkdir()
    settings.MODELS_DIR = found.models
    settings.IMPORT_ROOTS = [found.root]
    settings.IMPORT_UPLOADS_DIR = found.uploads
    return found


@pytest.fixture
def gguf(places: Places) -> Path:
    """A tiny model below the root."""
    path = places.root / "tiny.gguf"
    path.write_bytes(llama_gguf())
    return path
