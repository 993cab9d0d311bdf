"""The compiled step of a decoder, called directly: against transformers, on every instruction set
that this processor has, and bit for bit the same in any company."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine_service.config import QuantizationName
from engine_service.errors import EngineError
from engine_service.kernels.cpu.model import CompiledModel, RaggedRows
from engine_service.kernels.quantization import dequantize, quantize
from tests.compiled import compiled_library
from tests.compiled_decoder import (
    DTYPES,
    INSTRUCTION_SETS,
    MAX_MODEL_LEN,
    N_BLOCKS,
    PROMPTS,
    SHAPE,
    last_logits,
    load,
    logits_of,
    reference,
    require,
    shape_of,
)
from tests.models import random_model_dir

FAMILIES = ("llama", "qwen2", "qwen3")


@pytest.fixture(scope="module", params=FAMILIES)
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model_dir(tmp_path_factory.mktemp("model"), request.param, **SHAPE)


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> str:
    return require(request.param)


def test_logits_are_those_of_transformers(model_dir: Path, instruction_set: str) -> None:
    expected = logits_of(reference(model_dir, torch.float32))
    found = torch.stack(last_logits(load(model_dir, instruction_set), PROMPTS))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_errs_no_more_than_that_of_transformers(
    model_dir: Path, instruction_set: str
) -> None:
    rounded = reference(model_dir, torch.bfloat16)
    expected = logits_of(rounded)
    exact = logits_of(rounded.float())
    found = torch.stack(
        last_logits(load(model_dir, instruction_set, dtype=torch.bfloat16), PROMPTS)
    )
    assert (found - exact).norm() <= (expected - exact).norm()


def with_quantized_weights(model: Any) -> Any:
    """transformers' model in float32, its products' weights as int8 has them."""
    model = model.float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.copy_(dequantize(*quantize(weight), n_in=weight.shape[1]))
    return model


def test_int8_gives_the_logits_of_its_dequantized_weights(
    model_dir: Path, instruction_set: str
) -> None:
    expected = logits_of(with_quantized_weights(reference(model_dir, torch.float32)))
    found = torch.stack(last_logits(load(model_dir, instruction_set, quantization="int8"), PROMPTS))
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)


def test_int8_adds_no_more_error_than_bfloat16_has(model_dir: Path, instruction_set: str) -> None:
    rounded = reference(model_dir, torch.bfloat16)
    error_of_transformers = (logits_of(rounded) - logits_of(rounded.float())).norm()
    exact = logits_of(with_quantized_weights(rounded))
    model = load(model_dir, instruction_set, dtype=torch.bfloat16, quantization="int8")
    assert (torch.stack(last_logits(model, PROMPTS)) - exact).norm() <= error_of_transformers


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_row_has_the_same_bits_in_any_company(
    model_dir: Path,
    instruction_set: str,
    chunk: int,
    dtype: torch.dtype,
    quantization: QuantizationName,
) -> None:
    model = load(model_dir, instruction_set, dtype=dtype, quantization=quantization)
    together = last_logits(model, PROMPTS, chunk=chunk)
    for prompt, logits in zip(PROMPTS, together, strict=True):
        (alone,) = last_logits(model, [prompt])
        assert torch.equal(alone, logits)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_threads_that_come_late_or_never_change_no_bit(
    model_dir: Path, instruction_set: str, quantization: QuantizationName
) -> None:
    """With far more threads than cores some miss phases, others whole steps."""
    alone = load(model_dir, instruction_set, quantization=quantization, n_threads=1)
    crowd = load(model_dir, instruction_set, quantization=quantization, n_threads=24)
    expected = last_logits(alone, PROMPTS, chunk=7)
    for _ in range(20):
        for logits, one in zip(last_logits(crowd, PROMPTS, chunk=7), expected, strict=True):
            assert torch.equal(logits, one)


def next_logits(model: CompiledModel, *, context_len: int, block_ids: Sequence[int]) -> Tensor:
    """Logits behind one more token, whose context lies in ``block_ids``."""
    one = RaggedRows(
        token_ids=array("i", [5]),
        n_new=array("i", [1]),
        context_len=array("i", [context_len + 1]),
        table_start=array("i", [0]),
        block_ids=array("i", block_ids),
        sampled=array("i", [0]),
    )
    return model.step(one).clone()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copied_block_serves_as_the_first_and_a_cleared_one_does_not(
    model_dir: Path, instruction_set: str, dtype: torch.dtype
) -> None:
    model = load(model_dir, instruction_set, dtype=dtype)
    last_logits(model, [PROMPTS[4]])  # 40 tokens, in blocks 0 to 2
    model.copy([(0, 9), (2, 7), (1, 127)])
    expected = next_logits(model, context_len=40, block_ids=[0, 1, 2])
    model.clear([0, 1, 2])
    assert torch.equal(next_logits(model, context_len=40, block_ids=[9, 127, 7]), expected)
    cleared = next_logits(model, context_len=40, block_ids=[0, 1, 2])
    assert torch.equal(cleared, next_logits(model, context_len=40, block_ids=[30, 31, 32]))
    assert not torch.equal(cleared, expected)


def test_blocks_that_there_are_not_change_nothing(model_dir: Path, instruction_set: str) -> None:
    model = load(model_dir, instruction_set)
    last_logits(model, [PROMPTS[4]])
    expected = next_logits(model, context_len=40, block_ids=[0, 1, 2])
    for wrong in (-1, N_BLOCKS):
        with pytest.raises(EngineError):
            model.clear([0, wrong])
        with pytest.raises(EngineError):
            model.copy([(3, 0), (0, wrong)])
        with pytest.raises(EngineError):
            model.copy([(3, 0), (wrong, 0)])
    assert torch.equal(next_logits(model, context_len=40, block_ids=[0, 1, 2]), expected)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"head_dim": 8}, "head_dim 8"),
        ({"head_dim": 528}, "head_dim 528"),
        ({"block_size": 24}, "block_size 24"),
        ({"n_kv_heads": 4}, "6 heads .* 4 K/V heads"),
    ],
)
def test_sizes_that_it_does_not_know_are_refused_by_name(
    sizes: dict[str, int], named: str, instruction_set: str
) -> None:
    shape = shape_of(torch.float32, **sizes)
    with pytest.raises(ValueError, match=named):
        CompiledModel(compiled_library(), shape, instruction_set=instruction_set)


def test_a_tensor_of_another_size_or_dtype_is_refused(instruction_set: str) -> None:
    shape = shape_of(torch.float32)
    model = CompiledModel(compiled_library(), shape, instruction_set=instruction_set)
    ends = {
        "embedding": torch.zeros(320, 90),
        "norm": torch.zeros(90),
        "head": torch.zeros(320, 90),
        "rotary": torch.zeros(MAX_MODEL_LEN, 16),
    }
    model.set_ends(**ends)
    with pytest.raises(ValueError, match=r"head is \(320, 89\)"):
        model.set_ends(**ends | {"head": torch.zeros(320, 89)})
    with pytest.raises(ValueError, match=r"head is .* torch.bfloat16"):
        model.set_ends(**ends | {"head": ends["head"].bfloat16()})
