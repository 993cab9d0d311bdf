"""What a replica is reckoned to need, part by part."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from apps.deployments.estimates import EngineSizes, Estimate, estimate
from apps.registry.shapes import shape_read
from apps.registry.types import ModelShape

MIB = 2**20
SMOLLM2 = ModelShape(
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    hidden_size=576,
    intermediate_size=1536,
    vocab_size=49152,
)
LARGE = ModelShape(
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    hidden_size=4096,
    intermediate_size=14336,
    vocab_size=128256,
)
PRODUCTS = 30 * (960 * 576 + 576 * 576 + 3072 * 576 + 1536 * 576)
ENDS = 49152 * 576


def sizes(**changed: object) -> EngineSizes:
    fields = {
        "dtype": "bfloat16",
        "quantization": "none",
        "kv_cache_tokens": 8192,
        "max_sequences": 64,
        "max_batched_tokens": 512,
        **changed,
    }
    return EngineSizes(**fields)  # type: ignore[arg-type]


def of(shape: ModelShape | None = SMOLLM2, **changed: object) -> Estimate:
    return estimate(n_parameters=134_515_008, shape=shape, task="generate", sizes=sizes(**changed))


def test_the_parts_of_a_small_model() -> None:
    found = of()
    assert found.weights == 2 * (PRODUCTS + 2 * ENDS)
    assert found.kv_cache == 2 * 30 * 3 * 64 * 2 * 8192
    assert found.loading == 2 * PRODUCTS  # each product is small: none is given back by itself
    assert found.steps == 4 * (512 * 4 * (576 + 576 + 1536) + 64 * 49152 * 4)
    assert found.ready == found.weights + found.kv_cache + found.steps + 320 * MIB
    assert found.total == found.ready + found.loading


def test_what_the_type_and_the_quantization_change() -> None:
    narrow, wide, int8 = of(), of(dtype="float32"), of(quantization="int8")
    assert (wide.weights, wide.kv_cache) == (2 * narrow.weights, 2 * narrow.kv_cache)
    assert of(dtype="auto") == wide, "the widest that it may become"
    assert int8.weights == round((PRODUCTS + ENDS) * 1.125) + 2 * ENDS
    assert int8.kv_cache == narrow.kv_cache
    assert of(quantization="fp8").weights == PRODUCTS + ENDS + 2 * ENDS


def test_keys_and_values_in_fp8_take_a_byte_each_and_change_nothing_else() -> None:
    for dtype in ("bfloat16", "float32"):
        found = of(dtype=dtype, kv_cache_dtype="fp8")
        assert found.kv_cache == 2 * 30 * 3 * 64 * 8192
        assert found == replace(of(dtype=dtype), kv_cache=found.kv_cache)
    assert of(LARGE, n_parts=4, kv_cache_dtype="fp8").kv_cache == 2 * 32 * 2 * 128 * 8192


def test_flashinfer_works_in_memory_of_its_own_for_each_model() -> None:
    plain, found = of(is_on_gpu=True), of(is_on_gpu=True, attention="flashinfer")
    assert found == replace(plain, workspace=280 * MIB)
    assert found.lasting == plain.lasting
    assert found.with_draft(found).total - plain.with_draft(plain).total == 2 * 280 * MIB
    assert found.with_draft(found).ready - plain.with_draft(plain).ready == 2 * 280 * MIB


def test_with_a_draft_model_both_are_in_the_sum() -> None:
    found = of().with_draft(of(quantization="int8"))
    assert found.draft is not None
    assert found.ready == of().ready + of(quantization="int8").ready - 320 * MIB
    assert found.total == of().total + of(quantization="int8").total - 320 * MIB


def test_a_large_model_gives_its_weights_back_one_by_one() -> None:
    found = of(LARGE)
    # Queries with keys and values, and what goes out: 48 and 32 MiB. All are given back.
    assert found.loading == 0
    as_read = 2 * (32 * (6144 + 4096 + 3 * 14336) * 4096 + 128256 * 4096)
    assert (
        of(LARGE, quantization="int8").loading == as_read - of(LARGE, quantization="int8").weights
    )


def test_each_part_of_several_has_its_share_and_what_is_whole_everywhere() -> None:
    """As ``engine_service.models.shard`` cuts it: the embedding is not cut, and of one K/V head for
    several each has it."""
    whole, quarter = of(LARGE), of(LARGE, n_parts=4)
    cut = 32 * (6144 + 4096 + 3 * 14336) * 4096
    ends = 128256 * 4096
    assert whole.weights == 2 * (cut + 2 * ends)
    assert quarter.weights == 2 * (cut // 4 + ends // 4 + ends)
    assert of(LARGE, n_parts=5).weights == 2 * (
        32 * ((6 + 2 * 1) * 128 + 6 * 128 + 3 * 2867) * 4096 + 25652 * 4096 + ends
    ), "the head's rows are padded to parts of one size"
    # What goes between them: 64 rows of logits in bfloat16, as they come and as they are read.
    row = 4 * (4096 + 1024 + 3584)
    assert quarter.steps == 4 * (512 * row + 64 * 128256 * 4) + 2 * 2 * 64 * 128256
    assert quarter.kv_cache == whole.kv_cache // 4
    assert of(LARGE, n_parts=16).kv_cache == whole.kv_cache // 8
    assert quarter.lasting == quarter.weights + quarter.kv_cache
    assert quarter.ready < whole.ready


def test_on_a_gpu_more_is_left_for_the_process() -> None:
    assert of(is_on_gpu=True).ready - of().ready == (1024 - 320) * MIB
    assert of(None, is_on_gpu=True).ready - of(None).ready == (1024 - 320) * MIB


def test_of_what_nobody_knows_only_the_weights_count() -> None:
    assert of(None) == Estimate(weights=2 * 134_515_008, kv_cache=0, loading=0, steps=0)


def test_an_embedding_model_has_no_cache() -> None:
    found = estimate(
        n_parameters=22_565_376, shape=SMOLLM2, task="embed", sizes=sizes(dtype="float32")
    )
    assert (found.weights, found.kv_cache) == (4 * 22_565_376, 0)


CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 320,
}


def test_a_shape_is_read_from_the_models_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    assert shape_read(path) == ModelShape(
        n_layers=2,
        n_heads=4,
        n_kv_heads=4,
        head_dim=16,
        hidden_size=64,
        intermediate_size=96,
        vocab_size=320,
    )
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**CONFIG, "num_key_value_heads": 2, "head_dim": 32}))
    found = shape_read(other)
    assert found is not None
    assert (found.n_kv_heads, found.head_dim) == (2, 32)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{}",
        json.dumps({**CONFIG, "hidden_size": "64"}),
        json.dumps({**CONFIG, "num_hidden_layers": -1}),
        json.dumps({**CONFIG, "num_attention_heads": 0}),
        json.dumps({**CONFIG, "vocab_size": True}),
        " " * (2**20 + 1),
    ],
    ids=["empty", "list", "nothing", "text", "negative", "zero", "flag", "huge"],
)
def test_a_config_that_says_nothing_gives_no_shape(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    assert shape_read(path) is None
    assert shape_read(tmp_path / "nowhere.json") is None
