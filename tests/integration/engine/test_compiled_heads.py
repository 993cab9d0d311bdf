"""Attention of the compiled step for other sizes of heads, and other numbers of them to a key."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.compiled_decoder import (
    DTYPES,
    INSTRUCTION_SETS,
    PROMPTS,
    SHAPE,
    last_logits,
    load,
    logits_of,
    reference,
    require,
)
from tests.models import random_model_dir


@dataclass(frozen=True, slots=True)
class Heads:
    head_dim: int
    n_heads: int
    n_kv_heads: int

    def __str__(self) -> str:
        return f"{self.n_heads} of {self.head_dim} on {self.n_kv_heads}"


# More to a key than one call of a kernel takes, one to a key, halves that are no whole vector.
HEADS = (Heads(64, 9, 3), Heads(48, 5, 5), Heads(80, 6, 2), Heads(128, 18, 1), Heads(256, 2, 1))


@pytest.fixture(scope="module", params=HEADS, ids=str)
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    heads: Heads = request.param
    sizes = {
        **SHAPE,
        "num_attention_heads": heads.n_heads,
        "num_key_value_heads": heads.n_kv_heads,
        "head_dim": heads.head_dim,
        "initializer_range": 0.08,
    }
    return random_model_dir(tmp_path_factory.mktemp("model"), "llama", **sizes)


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> str:
    return require(request.param)


def test_float32_is_that_of_transformers(model_dir: Path, instruction_set: str) -> None:
    expected = logits_of(reference(model_dir, torch.float32))
    found = torch.stack(last_logits(load(model_dir, instruction_set), PROMPTS))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# Where kernels go through the context in parts, these end in the first, with it, and behind it.
LONG_PROMPTS = [[(i * 7 + n) % 300 for i in range(n)] for n in (511, 512, 513, 600)]


@pytest.fixture(scope="module")
def long_answers(model_dir: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of transformers in bfloat16, and those of the same weights in float32."""
    rounded = reference(model_dir, torch.bfloat16)
    expected = logits_of(rounded, LONG_PROMPTS)
    return expected, logits_of(rounded.float(), LONG_PROMPTS)


@pytest.mark.parametrize("chunk", [500, 100])
def test_long_contexts_err_no_more_in_bfloat16_either(
    model_dir: Path,
    long_answers: tuple[torch.Tensor, torch.Tensor],
    instruction_set: str,
    chunk: int,
) -> None:
    expected, exact = long_answers
    model = load(model_dir, instruction_set, dtype=torch.bfloat16)
    found = last_logits(model, LONG_PROMPTS, chunk=chunk)
    assert (torch.stack(found) - exact).norm() <= (expected - exact).norm()
    for prompt, logits in zip(LONG_PROMPTS, found, strict=True):
        assert torch.equal(last_logits(model, [prompt])[0], logits)


def test_bfloat16_errs_no_more_than_that_of_transformers(
    model_dir: Path, instruction_set: str
) -> None:
    rounded = reference(model_dir, torch.bfloat16)
    expected = logits_of(rounded)
    exact = logits_of(rounded.float())
    model = load(model_dir, instruction_set, dtype=torch.bfloat16)
    found = torch.stack(last_logits(model, PROMPTS))
    assert (found - exact).norm() <= (expected - exact).norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunk", [1, 7])
def test_a_row_has_the_same_bits_in_any_company(
    model_dir: Path, instruction_set: str, chunk: int, dtype: torch.dtype
) -> None:
    model = load(model_dir, instruction_set, dtype=dtype)
    together = last_logits(model, PROMPTS, chunk=chunk)
    for prompt, logits in zip(PROMPTS, together, strict=True):
        (alone,) = last_logits(model, [prompt])
        assert torch.equal(alone, logits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_a_block_held_before_counts_for_nothing(
    model_dir: Path, instruction_set: str, dtype: torch.dtype
) -> None:
    weights = reference(model_dir, dtype).state_dict()
    weights["model.embed_tokens.weight"][5] = float("nan")
    model = load(model_dir, instruction_set, dtype=dtype, weights=weights)
    prompts = [list(range(100, 100 + n)) for n in (1, 2, 19)]
    expected = [last_logits(model, [prompt])[0] for prompt in prompts]
    for prompt, logits in zip(prompts, expected, strict=True):
        assert last_logits(model, [[5] * 32])[0].isnan().all()
        assert torch.equal(last_logits(model, [prompt])[0], logits)
