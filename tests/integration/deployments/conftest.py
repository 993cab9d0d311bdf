"""A machine for the tests of placement; a file may have one of its own."""

from pathlib import Path
from typing import Any

import pytest

from apps.engines.models import Device
from tests.factories import DeviceFactory
from tests.integration.deployments.placing import MIB


@pytest.fixture
def models_dir(settings: Any, tmp_path: Path) -> Path:
    settings.MODELS_DIR = tmp_path
    return tmp_path


@pytest.fixture
def device(models_dir: Path) -> Device:
    """A processor with room for 1,000 MiB."""
    found: Device = DeviceFactory(node__name="box", node__n_cores=8, free_bytes=1000 * MIB)
    return found
