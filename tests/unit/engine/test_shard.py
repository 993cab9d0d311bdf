"""How a model is cut for several processes, and what is refused."""

from dataclasses import replace

import pytest

from engine_service.config import ModelConfig
from engine_service.errors import ModelError
from engine_service.models.shard import WHOLE, Shard
from engine_service.rotary import RotaryConfig

MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    n_layers=2,
    n_heads=8,
    n_kv_heads=4,
    head_dim=16,
    rms_norm_eps=1e-5,
    rotary=RotaryConfig(theta=10_000.0),
    context_length=512,
    sliding_window=None,
    tie_word_embeddings=True,
    eos_token_ids=frozenset({2}),
)


def test_one_rank_has_all_of_it() -> None:
    WHOLE.check(MODEL)
    assert WHOLE.of(MODEL) == MODEL
    assert WHOLE.part(96) == slice(0, 96)
    assert WHOLE.kv_heads(4) == slice(0, 4)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("vocab_size", [1, 7, 9, 320, 323])
def test_every_token_has_its_row_of_the_head_on_one_rank(n_ranks: int, vocab_size: int) -> None:
    tokens: list[int] = []
    for rank in range(n_ranks):
        shard = Shard(rank, n_ranks)
        rows = shard.vocab_rows(vocab_size)
        tokens += range(vocab_size)[rows]
        assert rows.stop - rows.start <= shard.n_vocab_rows(vocab_size)
        # Where ranks' parts stand behind each other, a token stands at its id.
        assert rows.start in (rank * shard.n_vocab_rows(vocab_size), vocab_size)
    assert tokens == list(range(vocab_size))


@pytest.mark.parametrize("n_ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4, 8])
def test_every_query_head_stands_with_its_kv_head(n_ranks: int, n_kv_heads: int) -> None:
    model = replace(MODEL, n_kv_heads=n_kv_heads)
    n_groups = model.n_heads // n_kv_heads
    pairs = []
    for rank in range(n_ranks):
        shard = Shard(rank, n_ranks)
        shard.check(model)
        local = shard.of(model)
        heads = range(model.n_heads)[shard.part(model.n_heads)]
        kv_heads = range(n_kv_heads)[shard.kv_heads(n_kv_heads)]
        assert (len(heads), len(kv_heads)) == (local.n_heads, local.n_kv_heads)
        # As attention does: query head i of a process attends to its K/V head i // groups.
        n_local = local.n_heads // local.n_kv_heads
        pairs += [(head, kv_heads[i // n_local]) for i, head in enumerate(heads)]
    assert pairs == [(head, head // n_groups) for head in range(model.n_heads)]


@pytest.mark.parametrize(
    ("n_ranks", "changes", "message"),
    [
        (3, {}, r"tensor_parallel \(3\) does not divide the model's num_attention_heads \(8\)"),
        (8, {"intermediate_size": 100}, r"does not divide the model's intermediate_size \(100\)"),
        (
            2,
            {"n_heads": 6, "n_kv_heads": 3},
            r"tensor_parallel \(2\) must divide the model's num_key_value_heads \(3\) or be a mul",
        ),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused(
    n_ranks: int, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        Shard(0, n_ranks).check(replace(MODEL, **changes))  # type: ignore[arg-type]
