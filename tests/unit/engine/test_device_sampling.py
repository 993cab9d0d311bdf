"""What goes to the device says the same as what the CPU's sampler is told."""

from collections.abc import Sequence
from typing import Any

import torch

from engine_service.kernels.device import TorchKernels
from engine_service.protocol import SamplingParams
from engine_service.runner.device_sampling import DeviceDraws, build_draws, is_careful
from engine_service.runner.logit_adjustments import AdjustedRow, adjust
from engine_service.runner.sample_row import SampleRow
from engine_service.runner.sampler import sample
from engine_service.scheduling.sampling_state import SamplingState
from tests.masks import ListedMask

VOCAB_SIZE = 67
PROMPT = (1, 2, 3, 2)
ANSWER = (5, 5, 2, 60)
CPU = torch.device("cpu")
PARAMS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {},
    {"top_k": 5, "top_p": 0.9},
    {"repetition_penalty": 1.3},
    {"temperature": 0.7, "frequency_penalty": 0.5, "presence_penalty": -1.5, "min_p": 0.05},
    {"logit_bias": ((7, 3.5), (66, -100.0), (5, 1.0)), "repetition_penalty": 0.8},
    {"min_tokens": 9, "stop_token_ids": (66, 10)},
    {"temperature": 1e-9},
    {"top_k": 2**40},
)
MASKED: dict[str, Any] = {"top_k": 20}


class FailingMask(ListedMask):
    def accept(self, token_id: int) -> None:
        raise ValueError("no")


class ShortMask(ListedMask):
    def allowed(self, behind: Sequence[int] = ()) -> bytes:
        return super().allowed(behind)[:-1]


def row(seed: int, *, mask: ListedMask | None = None, **params: Any) -> SampleRow:
    sampling = SamplingParams(**params)
    return SampleRow(
        params=sampling,
        seed=seed,
        n_generated=len(ANSWER),
        state=SamplingState.of(sampling, prompt_token_ids=PROMPT, eos_token_ids=(0,), mask=mask),
        token_ids=PROMPT + ANSWER,
    )


def mask_of(*token_ids: int, kind: type[ListedMask] = ListedMask) -> ListedMask:
    return kind(lambda _: token_ids, vocab_size=VOCAB_SIZE)


def some_rows() -> list[SampleRow]:
    rows = [row(i, **params) for i, params in enumerate(PARAMS * 3)]
    return [*rows, row(50, mask=mask_of(3, 66, 40), **MASKED, logit_bias=((3, 2.0),))]


def some_logits(n_rows: int) -> torch.Tensor:
    return torch.randn(n_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(4)) * 2


def draws_of(rows: Sequence[SampleRow], **kwargs: int) -> DeviceDraws:
    return build_draws(rows, vocab_size=VOCAB_SIZE, device=CPU, **kwargs)


def test_logits_are_adjusted_as_on_the_cpu() -> None:
    rows = some_rows()
    actual = some_logits(len(rows))
    expected = actual.clone()
    draws = draws_of(rows)
    assert draws.careful == ()
    assert draws.adjustments is not None
    TorchKernels().adjust(actual, adjustments=draws.adjustments)
    adjusted = [AdjustedRow(i, each, each.state) for i, each in enumerate(rows) if each.state]
    assert adjust(expected, rows=adjusted) == {}
    assert torch.equal(actual, expected)
    assert not torch.equal(actual, some_logits(len(rows)))


def test_tokens_are_those_of_the_cpu() -> None:
    rows = some_rows()
    logits = some_logits(len(rows))
    draws = draws_of(rows)
    assert draws.adjustments is not None
    adjusted = logits.clone()
    TorchKernels().adjust(adjusted, adjustments=draws.adjustments)
    actual = TorchKernels().sample(adjusted, sampling=draws.sampling).tolist()
    assert actual == sample(logits, rows=rows).token_ids


def test_flags_say_what_a_step_needs() -> None:
    def flags(*params: dict[str, Any]) -> tuple[bool, bool, bool]:
        draws = draws_of([row(i, **each) for i, each in enumerate(params)])
        return draws.sampling.drawn, draws.sampling.filtered, draws.adjustments is not None

    assert flags({"temperature": 0.0, "top_k": 4}) == (False, False, False)
    assert flags({"temperature": 0.0}, {}) == (True, False, False)
    assert flags({"min_p": 0.1}) == (True, True, False)
    assert flags({"logit_bias": ((1, 1.0),)}) == (True, False, True)
    # Of the CPU's rows the device sees nothing.
    assert flags({"top_p": 0.5, "logprobs": 0, "logit_bias": ((1, 1.0),)}) == (False, False, False)


def test_padding_is_greedy_and_every_part_begins_where_16_bytes_are_loaded() -> None:
    draws = draws_of([row(1, top_k=3), row(2, presence_penalty=1.0)], n_rows=5)
    sampling = draws.sampling
    assert sampling.temperature.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert sampling.top_k.tolist() == [3, 0, 0, 0, 0]
    assert sampling.top_p.tolist() == [1.0] * 5
    assert sampling.min_p.tolist() == [0.0] * 5
    assert sampling.uniform.tolist()[2:] == [0.0] * 3
    assert draws.adjustments is not None
    assert draws.adjustments.presence.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert draws.adjustments.repetition.tolist() == [1.0] * 5
    parts = [sampling.uniform, sampling.temperature, sampling.top_k, draws.adjustments.counts]
    assert {part.data_ptr() % 16 for part in parts} == {sampling.uniform.data_ptr() % 16}


def test_what_the_device_cannot_draw_is_careful() -> None:
    plain = row(1)
    drafted = SampleRow(params=SamplingParams(), seed=1, n_generated=0, draft=(4,))
    assert not is_careful(plain)
    assert not is_careful(drafted)
    assert is_careful(row(1, logprobs=0))
    assert is_careful(row(1, mask=mask_of(1)))
    assert is_careful(row(1, mask=mask_of(1), temperature=0.0, top_k=4))
    assert not is_careful(row(1, mask=mask_of(1), **MASKED))


def test_a_row_that_fails_is_careful_and_harms_no_neighbour() -> None:
    rows = [
        row(1, mask=mask_of(1, kind=FailingMask), **MASKED),
        row(2, mask=mask_of(1, 66), **MASKED),
        row(3, mask=mask_of(1, kind=ShortMask), **MASKED, logit_bias=((5, 1.0),)),
        row(4, mask=mask_of(), **MASKED),
        # All that the mask allows must not come yet.
        row(5, mask=mask_of(0, 66), **MASKED, min_tokens=9, stop_token_ids=(66,)),
        row(6, mask=mask_of(0, 65), **MASKED, min_tokens=9, stop_token_ids=(66,)),
        row(7, min_tokens=9, stop_token_ids=tuple(range(VOCAB_SIZE))),
        row(8, presence_penalty=1.0),
    ]
    draws = draws_of(rows)
    assert draws.careful == (0, 2, 3, 4, 6)
    assert draws.sampling.temperature.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    adjustments = draws.adjustments
    assert adjustments is not None
    assert adjustments.masked_rows.tolist() == [1, 5]
    assert adjustments.forbidden_rows.tolist() == [5, 5]
    assert adjustments.biased_rows.tolist() == []
    assert set(adjustments.penalized_rows.tolist()) == {7}
    logits = some_logits(len(rows))
    TorchKernels().adjust(logits, adjustments=adjustments)
    tokens = TorchKernels().sample(logits, sampling=draws.sampling).tolist()
    assert tokens[1] in (1, 66)
    assert tokens[5] == 65
