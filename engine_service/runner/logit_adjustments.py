"""Changes logits before a token is chosen: penalties, bias, tokens that are forbidden.

Each entry is changed by itself, so that nothing depends on the other rows. A step costs what the
tokens named cost; only a mask costs the whole vocabulary of its row.
"""

import logging
from array import array
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
from torch import Tensor

from engine_service.errors import EngineError, RequestError
from engine_service.protocol import SamplingParams
from engine_service.scheduling.sampling_state import SamplingState, is_penalized
from engine_service.scheduling.token_mask import n_mask_bytes

logger = logging.getLogger(__name__)

# Row of the logits, parameters, state, tokens generated so far.
AdjustedRow = tuple[int, SamplingParams, SamplingState, int]


def adjust(logits: Tensor, *, rows: SequenceOf[AdjustedRow]) -> dict[int, EngineError]:
    """Change ``logits`` in place; return the rows that must fail, by index, and why.

    A state must have caught up. In order: repetition penalty over prompt and answer (Keskar et al.
    2019, https://arxiv.org/abs/1909.05858), frequency and presence penalty over the answer, bias,
    what ``min_tokens`` forbids, mask.
    """
    _penalize(logits, rows=[row for row in rows if is_penalized(row[1])])
    _add_bias(logits, rows=[row for row in rows if row[1].logit_bias])
    early = [row for row in rows if row[3] < row[1].min_tokens and row[2].end_ids]
    masked = [row for row in rows if row[2].mask is not None]
    if not (early or masked):
        return {}
    indices = sorted({row[0] for row in early + masked})
    before = logits[indices].amax(dim=-1).isfinite().tolist()
    _forbid_ends(logits, rows=early)
    errors = _apply_masks(logits, rows=masked)
    after = logits[indices].amax(dim=-1).isneginf().tolist()
    params = {row[0]: "min_tokens" for row in early}
    params |= {row[0]: row[2].mask.param for row in masked if row[2].mask is not None}
    for index, was_usable, is_empty in zip(indices, before, after, strict=True):
        if was_usable and is_empty and index not in errors:
            errors[index] = RequestError(
                f"{params[index]} leaves no token that may come next.",
                code="no_token_allowed",
                param=params[index],
            )
    return errors


def _penalize(logits: Tensor, *, rows: SequenceOf[AdjustedRow]) -> None:
    rows = [row for row in rows if row[2].ids]
    if not rows:
        return
    lengths = torch.tensor([len(row[2].ids) for row in rows])

    def spread(value_of: Callable[[SamplingParams], float]) -> Tensor:
        values = torch.tensor([value_of(row[1]) for row in rows], dtype=torch.float32)
        return values.repeat_interleave(lengths)

    where = _entries(rows, ids=[row[2].ids for row in rows])
    counts = _joined([row[2].counts for row in rows], dtype=torch.float32)
    repetition = spread(lambda params: params.repetition_penalty)
    values = logits[where]
    values = torch.where(values < 0, values * repetition, values / repetition)
    values -= counts * spread(lambda params: params.frequency_penalty)
    values -= (counts > 0) * spread(lambda params: params.presence_penalty)
    logits[where] = values


def _add_bias(logits: Tensor, *, rows: SequenceOf[AdjustedRow]) -> None:
    if rows:
        where = _entries(rows, ids=[row[2].bias_ids for row in rows])
        logits[where] += _joined([row[2].bias for row in rows], dtype=torch.float32)


def _forbid_ends(logits: Tensor, *, rows: SequenceOf[AdjustedRow]) -> None:
    if rows:
        logits[_entries(rows, ids=[row[2].end_ids for row in rows])] = -torch.inf


def _apply_masks(logits: Tensor, *, rows: SequenceOf[AdjustedRow]) -> dict[int, EngineError]:
    errors: dict[int, EngineError] = {}
    indices, masks = [], []
    size = n_mask_bytes(logits.shape[-1])
    for index, _, state, _ in rows:
        try:
            mask = np.frombuffer(state.mask.allowed(), dtype=np.uint8) if state.mask else None
        except EngineError as error:
            errors[index] = error
            continue
        except Exception as error:  # of whoever made the mask
            logger.exception("a mask failed")
            errors[index] = EngineError(f"the mask of allowed tokens failed: {error}")
            continue
        if mask is None or mask.shape != (size,):
            errors[index] = EngineError(f"the mask of allowed tokens is not {size} bytes long")
            continue
        indices.append(index)
        masks.append(mask)
    if masks:
        bits = np.unpackbits(np.stack(masks), axis=-1, count=logits.shape[-1], bitorder="little")
        forbidden = torch.from_numpy(bits) == 0
        logits[indices] = logits[indices].masked_fill(forbidden, -torch.inf)
    return errors


def _entries(
    rows: SequenceOf[AdjustedRow], *, ids: SequenceOf["array[int]"]
) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(part) for part in ids])
    indices = torch.tensor([row[0] for row in rows]).repeat_interleave(lengths)
    return indices, _joined(ids, dtype=torch.int64)


def _joined(
    parts: "SequenceOf[array[int]] | SequenceOf[array[float]]", *, dtype: torch.dtype
) -> Tensor:
    # A copy, because an array cannot grow while a tensor looks at it.
    return torch.frombuffer(bytearray(b"".join(parts)), dtype=dtype)
