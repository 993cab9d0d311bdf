"""What the platform says of a model's task is what an engine of it does."""

from apps.registry.types import EMBEDDING_ARCHITECTURES
from engine_service.encoder_config import ENCODERS


def test_the_platform_knows_which_architectures_embed() -> None:
    assert frozenset(ENCODERS) == EMBEDDING_ARCHITECTURES
