"""The tensors of the KV pool."""

import pytest
import torch

from engine_service.config import ModelConfig
from engine_service.errors import ModelError
from engine_service.rotary import RotaryConfig
from engine_service.runner.kv_cache import KVCache

CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rotary=RotaryConfig(theta=10_000.0),
    sliding_window=None,
    context_length=128,
    tie_word_embeddings=True,
    eos_token_ids=frozenset({2}),
)


def test_one_cache_a_layer() -> None:
    cache = KVCache(CONFIG, n_blocks=3, block_size=16, dtype=torch.float32)
    assert [tuple(layer.shape) for layer in cache.layers] == [(3, 16, 2, 2, 16)] * 2


def test_blocks_are_copied_in_every_layer_and_the_others_stay() -> None:
    cache = KVCache(CONFIG, n_blocks=5, block_size=16, dtype=torch.float32)
    for layer in cache.layers:
        layer.copy_(torch.randn(layer.shape))
    before = [layer.clone() for layer in cache.layers]
    cache.copy(())
    cache.copy([(0, 3), (2, 1)])
    for layer, old in zip(cache.layers, before, strict=True):
        assert torch.equal(layer, old[[0, 2, 2, 0, 4]])


@pytest.mark.parametrize("n_blocks", [2**33, 2**60])
def test_a_pool_beyond_all_memory_is_a_wrong_configuration(n_blocks: int) -> None:
    with pytest.raises(ModelError, match=r"GiB, more memory than can be had"):
        KVCache(CONFIG, n_blocks=n_blocks, block_size=16, dtype=torch.float32)
