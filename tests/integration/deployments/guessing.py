"""A model and a small one with the same vocabulary, which may guess for it."""

from typing import Any

import pytest

from apps.registry.models import ModelVersion
from tests.integration.deployments.machine import shaped

WORDS = "ab" * 32
SMALL = {"n_layers": 2, "hidden_size": 128, "n_heads": 2, "n_kv_heads": 2, "intermediate_size": 256}


@pytest.fixture
def target() -> ModelVersion:
    found: ModelVersion = shaped(model__name="large", vocabulary_sha256=WORDS)
    return found


@pytest.fixture
def draft() -> ModelVersion:
    return small()


def small(**changed: Any) -> ModelVersion:
    fields = {"model__name": "small", "vocabulary_sha256": WORDS, "shape": SMALL, **changed}
    found: ModelVersion = shaped(**fields)
    return found
