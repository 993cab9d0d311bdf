"""A rank reads its part of every tensor: the parts of all ranks are the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine_service.config import ModelConfig
from engine_service.errors import ModelError
from engine_service.layers.decoder import Decoder
from engine_service.models.registry import load_model
from engine_service.models.shard import WHOLE, Shard
from tests.integration.engine.backend import altered
from tests.models import random_model_dir


def load(model_dir: Path, shard: Shard = WHOLE) -> Decoder:
    config = ModelConfig.from_dir(model_dir)
    return load_model(model_dir, config=config, max_model_len=64, dtype=torch.float32, shard=shard)


def tensors(decoder: Decoder) -> dict[str, Tensor]:
    """Take every tensor of a decoder, q, k, v, gate and up apart."""
    found = {
        "embedding": decoder.embedding.weight,
        "norm": decoder.norm.weight,
        "head": decoder.head.take(),
    }
    for index, layer in enumerate(decoder.layers):
        attention = layer.attention
        heads = (attention.n_heads, attention.n_kv_heads, attention.n_kv_heads)
        sizes = [n * attention.head_dim for n in heads]
        named: dict[str, Tensor | None] = {
            "attention_norm": layer.attention_norm.weight,
            "feed_forward_norm": layer.feed_forward_norm.weight,
            "output": attention.output.take(),
            "down": layer.feed_forward.down.take(),
            "q_norm": attention.q_norm.weight if attention.q_norm else None,
            "k_norm": attention.k_norm.weight if attention.k_norm else None,
        }
        named |= zip("qkv", attention.qkv.take().split(sizes), strict=True)
        named |= zip(("gate", "up"), layer.feed_forward.gate_up.take().chunk(2), strict=True)
        if attention.qkv.bias is not None:
            biases = attention.qkv.bias.split(sizes)
            named |= zip(("q_bias", "k_bias", "v_bias"), biases, strict=True)
        found |= {f"{index}.{name}": value for name, value in named.items() if value is not None}
    return found


def joined(name: str, parts: list[Tensor], *, n_copies: int, n_vocab: int) -> Tensor:
    """Put together what the ranks have of a tensor, or check that all have the same."""
    kind = name.split(".")[-1]
    if kind in ("q", "q_bias", "gate", "up"):
        return torch.cat(parts)
    if kind in ("k", "v", "k_bias", "v_bias"):
        for rank in range(len(parts)):
            assert torch.equal(parts[rank], parts[rank - rank % n_copies])
        return torch.cat(parts[::n_copies])
    if kind in ("output", "down"):
        return torch.cat(parts, dim=1)
    if kind == "head":  # the last ones may be padded
        assert len({len(part) for part in parts}) == 1
        rows = torch.cat(parts)
        assert not rows[n_vocab:].any()
        return rows[:n_vocab]
    assert all(torch.equal(part, parts[0]) for part in parts)
    return parts[0]


@pytest.mark.parametrize(
    ("family", "settings", "n_ranks"),
    [
        ("llama", {}, 2),
        ("llama", {}, 4),
        ("mistral", {"sliding_window": None, "tie_word_embeddings": False}, 2),
        ("qwen2", {"num_key_value_heads": 1}, 2),
        ("qwen3", {"head_dim": 32}, 2),
        ("llama", {"vocab_size": 323}, 2),
        ("qwen3", {"vocab_size": 323, "tie_word_embeddings": False}, 4),
    ],
)
def test_the_parts_of_all_ranks_are_the_model(
    tmp_path: Path, family: str, settings: dict[str, Any], n_ranks: int
) -> None:
    model_dir = random_model_dir(tmp_path, family, **settings)
    whole = tensors(load(model_dir))
    ranks = [tensors(load(model_dir, Shard(rank, n_ranks))) for rank in range(n_ranks)]
    n_copies = max(1, n_ranks // ModelConfig.from_dir(model_dir).n_kv_heads)
    n_vocab = len(whole["head"])
    assert [len(rank["head"]) for rank in ranks] == [-(-n_vocab // n_ranks)] * n_ranks
    for name, value in whole.items():
        parts = [rank[name] for rank in ranks]
        assert torch.equal(joined(name, parts, n_copies=n_copies, n_vocab=n_vocab), value), name
    assert sum(len(rank) for rank in ranks) == n_ranks * len(whole)
    n_cut = sum(rank["0.q"].numel() + rank["0.down"].numel() for rank in ranks)
    assert n_cut == whole["0.q"].numel() + whole["0.down"].numel()


def test_a_part_is_checked_as_the_whole_is(tmp_path: Path) -> None:
    model_dir = random_model_dir(tmp_path, "llama")
    with pytest.raises(ModelError, match=r"tensor_parallel \(3\) does not divide"):
        load(model_dir, Shard(0, 3))
    name = "model.layers.1.mlp.down_proj.weight"
    narrow = altered(model_dir, tmp_path, lambda found: found.update({name: torch.zeros(64, 94)}))
    with pytest.raises(ModelError, match=r"has the shape \(64, 94\), the configuration says"):
        load(narrow, Shard(1, 2))
