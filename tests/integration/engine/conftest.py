"""The model that most tests of the engine run."""

from pathlib import Path

import pytest

from tests.compiled import compiled_library
from tests.models import random_llama_dir


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama. Read only: all tests share it; a file may have a fixture of its own."""
    return random_llama_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=["compiled", "reference"])
def kernels(request: pytest.FixtureRequest) -> str:
    """A test that asks for it runs on either."""
    if request.param == "compiled":
        compiled_library()
    name: str = request.param
    return name
