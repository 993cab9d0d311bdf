"""Changes logits before a token is chosen: penalties, bias, tokens that are forbidden.

Each entry is changed by itself, so that nothing depends on the other rows. A step costs what the
tokens named cost; only a mask costs the whole vocabulary of its row.
"""

from array import array
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from engine_service.errors import EngineError
from engine_service.protocol import SamplingParams
from engine_service.runner.masking import forbid, no_token_allowed, read_masks
from engine_service.runner.sample_row import SampleRow, mask_comes_first
from engine_service.scheduling.sampling_state import SamplingState, is_penalized


@dataclass(frozen=True, slots=True)
class AdjustedRow:
    """index: which row of the logits it is. state: the row's, which must have caught up."""

    index: int
    row: SampleRow
    state: SamplingState

    @property
    def params(self) -> SamplingParams:
        return self.row.params

    @property
    def is_early(self) -> bool:
        """True where ``min_tokens`` forbids to end."""
        return bool(self.state.end_ids) and self.row.n_generated < self.params.min_tokens


def adjust(logits: Tensor, *, rows: SequenceOf[AdjustedRow]) -> dict[int, EngineError]:
    """Change ``logits`` in place; return the rows that must fail, by index, and why.

    In order: repetition penalty over prompt and answer (Keskar et al. 2019,
    https://arxiv.org/abs/1909.05858), frequency and presence penalty over the answer, bias, what
    ``min_tokens`` forbids, mask where it comes first.
    """
    _penalize(logits, rows=[each for each in rows if is_penalized(each.params)])
    _add_bias(logits, rows=[each for each in rows if each.params.logit_bias])
    early = [each for each in rows if each.is_early]
    masked = [
        each for each in rows if each.state.mask is not None and mask_comes_first(each.params)
    ]
    if not (early or masked):
        return {}
    # Of all rows, because picking some copies them, which takes ten times as long.
    was_usable = logits.amax(dim=-1).isfinite().tolist()
    _forbid_ends(logits, rows=early)
    masks, errors = read_masks(
        [(each.index, each.row) for each in masked], vocab_size=logits.shape[-1]
    )
    forbid(logits, masks=masks)
    is_empty = logits.amax(dim=-1).isneginf().tolist()
    params = {each.index: "min_tokens" for each in early}
    params |= {each.index: each.state.mask.param for each in masked if each.state.mask is not None}
    for index, param in params.items():
        if was_usable[index] and is_empty[index] and index not in errors:
            errors[index] = no_token_allowed(param)
    return errors


def _penalize(logits: Tensor, *, rows: SequenceOf[AdjustedRow]) -> None:
    rows = [each for each in rows if each.state.ids]
    if not rows:
        return
    lengths = torch.tensor([len(each.state.ids) for each in rows])

    def spread(value_of: Callable[[SamplingParams], float]) -> Tensor:
        values = torch.tensor([value_of(each.params) for each in rows], dtype=torch.float32)
        return values.repeat_interleave(lengths)

    where = _entries(rows, ids=[each.state.ids for each in rows])
    counts = _joined([each.state.counts for each in rows], dtype=torch.float32)
    repetition = spread(lambda params: params.repetition_penalty)
    values = logits[where]
    values = torch.where(values < 0, values * repetition, values / repetition)
    values -= counts * spread(lambda params: params.frequency_penalty)
    values -= (counts > 0) * spread(lambda params: params.presence_penalty)
    logits[where] = values


def _add_bias(logits: Tensor, *, rows: SequenceOf[AdjustedRow]) -> None:
    if rows:
        where = _entries(rows, ids=[each.state.bias_ids for each in rows])
        logits[where] += _joined([each.state.bias for each in rows], dtype=torch.float32)


def _forbid_ends(logits: Tensor, *, rows: SequenceOf[AdjustedRow]) -> None:
    if rows:
        logits[_entries(rows, ids=[each.state.end_ids for each in rows])] = -torch.inf


def _entries(
    rows: SequenceOf[AdjustedRow], *, ids: SequenceOf["array[int]"]
) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(part) for part in ids])
    indices = torch.tensor([each.index for each in rows]).repeat_interleave(lengths)
    return indices, _joined(ids, dtype=torch.int64)


def _joined(
    parts: "SequenceOf[array[int]] | SequenceOf[array[float]]", *, dtype: torch.dtype
) -> Tensor:
    # A copy, because an array cannot grow while a tensor looks at it.
    return torch.frombuffer(bytearray(b"".join(parts)), dtype=dtype)
