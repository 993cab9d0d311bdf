"""Turns a step's draws into the tensors from which a device adjusts logits and samples.

All of them are laid one behind the other in one piece of host memory, so that one copy brings them
over. Pinned memory comes from torch's own cache, which does not hand it out again before the copy
is done.
"""

import logging
import math
from array import array
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_service.kernels.device import AdjustmentTensors, SamplingTensors
from engine_service.runner.logit_adjustments import AdjustedRow
from engine_service.runner.masking import read_masks
from engine_service.runner.sample_row import SampleRow, mask_comes_first
from engine_service.scheduling.sampling_state import is_penalized
from engine_service.scheduling.token_mask import n_mask_bytes

logger = logging.getLogger(__name__)

# A kernel compiled for pointers that are multiples of this is compiled anew for another.
_ALIGNMENT: Final = 16
_MAX_INT32: Final = 2**31 - 1
_Array = NDArray[Any]
_Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDraws:
    """adjustments: None where there is nothing to change. careful: rows that the CPU's sampler
    must draw, from their logits as the model gave them; here they stand as greedy ones."""

    sampling: SamplingTensors
    adjustments: AdjustmentTensors | None
    careful: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Adjusted:
    """Rows by what is to be done to them; masks: by row. early: must not end yet."""

    penalized: list[AdjustedRow]
    biased: list[AdjustedRow]
    early: list[AdjustedRow]
    masks: dict[int, NDArray[np.uint8]]

    def __bool__(self) -> bool:
        return bool(self.penalized or self.biased or self.early or self.masks)


def is_careful(row: SampleRow) -> bool:
    """Return whether only the CPU's sampler can draw this row: what is wanted of it is more than
    a token, or its mask is asked about tokens after they are drawn (``redrawing``)."""
    if row.params.logprobs is not None or row.is_again:
        return True
    state = row.state
    return state is not None and state.mask is not None and not mask_comes_first(row.params)


def build_draws(
    rows: SequenceOf[SampleRow], *, vocab_size: int, device: torch.device, n_rows: int = 0
) -> DeviceDraws:
    """Return the tensors of ``rows``, on their way to ``device`` in its current stream.

    n_rows: of a graph's batch, where it is more than there are; the others are greedy. A row whose
    state or mask fails, or leaves no token, is careful: the CPU's sampler says what is wrong.
    """
    n_rows = max(n_rows, len(rows))
    careful = {i for i, row in enumerate(rows) if is_careful(row)}
    adjusted = _sort(rows, vocab_size=vocab_size, careful=careful)
    shapes = _row_shapes(n_rows)
    if adjusted:
        shapes |= _adjustment_shapes(adjusted, n_rows=n_rows, vocab_size=vocab_size)
    places, size_bytes = _places(shapes)
    buffer = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    host = {name: part.numpy() for name, part in _parts(buffer, shapes=shapes, places=places)}
    drawn = [(i, row) for i, row in enumerate(rows) if i not in careful and not row.is_greedy]
    _fill_rows(host, drawn=drawn)
    if adjusted:
        _fill_adjustments(host, adjusted)
    moved = dict(_parts(buffer.to(device, non_blocking=True), shapes=shapes, places=places))
    return DeviceDraws(
        sampling=SamplingTensors(
            **{name: moved.pop(name) for name in _row_shapes(0)},
            filtered=any(row.filter != "none" for _, row in drawn),
            drawn=bool(drawn),
        ),
        adjustments=AdjustmentTensors(**moved) if adjusted else None,
        careful=tuple(sorted(careful)),
    )


def _sort(rows: SequenceOf[SampleRow], *, vocab_size: int, careful: set[int]) -> _Adjusted:
    """Return what is to be done to the rows that are not ``careful``; add those whose state or mask
    fails or leaves nothing."""
    adjusted: list[AdjustedRow] = []
    for i, row in enumerate(rows):
        if row.state is None or i in careful:
            continue
        try:
            row.state.catch_up(row.token_ids)
        except Exception:  # a mask's own: the CPU's sampler meets it again, and says whose it is
            logger.debug("a mask refused a token", exc_info=True)
            careful.add(i)
            continue
        adjusted.append(AdjustedRow(i, row, row.state))
    masked = [(each.index, each.row) for each in adjusted if each.state.mask is not None]
    masks, errors = read_masks(masked, vocab_size=vocab_size)
    careful.update(errors)
    careful.update(
        each.index
        for each in adjusted
        if (each.is_early or each.index in masks)
        and not _leaves_any(each, mask=masks.get(each.index), vocab_size=vocab_size)
    )
    adjusted = [each for each in adjusted if each.index not in careful]
    return _Adjusted(
        penalized=[each for each in adjusted if is_penalized(each.params) and each.state.ids],
        biased=[each for each in adjusted if each.state.bias_ids],
        early=[each for each in adjusted if each.is_early],
        masks={i: mask for i, mask in masks.items() if i not in careful},
    )


def _leaves_any(each: AdjustedRow, *, mask: NDArray[np.uint8] | None, vocab_size: int) -> bool:
    ends = each.state.end_ids if each.is_early else ()
    if mask is None:
        return len(ends) < vocab_size
    # Each end empties one byte at most; only a mask of few bytes is looked at bit by bit.
    if np.count_nonzero(mask[: vocab_size // 8]) > len(ends):
        return True
    allowed = np.unpackbits(mask, bitorder="little", count=vocab_size)
    allowed[list(ends)] = 0
    return bool(allowed.any())


def _row_shapes(n_rows: int) -> _Shapes:
    return {
        "uniform": (torch.float64, (n_rows,)),
        "temperature": (torch.float32, (n_rows,)),
        "top_p": (torch.float32, (n_rows,)),
        "min_p": (torch.float32, (n_rows,)),
        "top_k": (torch.int32, (n_rows,)),
    }


def _adjustment_shapes(adjusted: _Adjusted, *, n_rows: int, vocab_size: int) -> _Shapes:
    n_penalized = sum(len(each.state.ids) for each in adjusted.penalized)
    n_biased = sum(len(each.state.bias_ids) for each in adjusted.biased)
    n_forbidden = sum(len(each.state.end_ids) for each in adjusted.early)
    n_parameters = n_rows if adjusted.penalized else 0
    n_masked = len(adjusted.masks)
    return {
        "penalized_rows": (torch.int32, (n_penalized,)),
        "penalized_ids": (torch.int32, (n_penalized,)),
        "counts": (torch.float32, (n_penalized,)),
        "repetition": (torch.float32, (n_parameters,)),
        "frequency": (torch.float32, (n_parameters,)),
        "presence": (torch.float32, (n_parameters,)),
        "biased_rows": (torch.int32, (n_biased,)),
        "biased_ids": (torch.int32, (n_biased,)),
        "bias": (torch.float32, (n_biased,)),
        "forbidden_rows": (torch.int32, (n_forbidden,)),
        "forbidden_ids": (torch.int32, (n_forbidden,)),
        "masked_rows": (torch.int32, (n_masked,)),
        "masks": (torch.uint8, (n_masked, n_mask_bytes(vocab_size) if n_masked else 0)),
    }


def _places(shapes: _Shapes) -> tuple[dict[str, slice], int]:
    """Return the bytes of each part of the buffer, and the size of it."""
    places: dict[str, slice] = {}
    end = 0
    for name, (dtype, shape) in shapes.items():
        size_bytes = dtype.itemsize * math.prod(shape)
        places[name] = slice(end, end + size_bytes)
        end += -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
    return places, end


def _parts(
    buffer: Tensor, *, shapes: _Shapes, places: dict[str, slice]
) -> Iterator[tuple[str, Tensor]]:
    for name, (dtype, shape) in shapes.items():
        yield name, buffer[places[name]].view(dtype).view(shape)


def _fill_rows(host: dict[str, _Array], *, drawn: SequenceOf[tuple[int, SampleRow]]) -> None:
    for name in ("uniform", "temperature", "min_p", "top_k"):
        host[name].fill(0)
    host["top_p"].fill(1.0)
    if drawn:
        where = [i for i, _ in drawn]
        params = [row.params for _, row in drawn]
        host["uniform"][where] = [row.uniform for _, row in drawn]
        host["temperature"][where] = [each.temperature for each in params]
        host["top_p"][where] = [each.top_p for each in params]
        host["min_p"][where] = [each.min_p for each in params]
        # More than any vocabulary has is as good as all.
        host["top_k"][where] = [min(each.top_k, _MAX_INT32) for each in params]


def _fill_adjustments(host: dict[str, _Array], adjusted: _Adjusted) -> None:
    if penalized := adjusted.penalized:
        _fill_entries(
            penalized,
            ids=[each.state.ids for each in penalized],
            row_part=host["penalized_rows"],
            id_part=host["penalized_ids"],
        )
        host["counts"][:] = _joined([each.state.counts for each in penalized], dtype=np.float32)
        indices = [each.index for each in penalized]
        params = [each.params for each in penalized]
        host["repetition"].fill(1.0)
        host["frequency"].fill(0.0)
        host["presence"].fill(0.0)
        host["repetition"][indices] = [each.repetition_penalty for each in params]
        host["frequency"][indices] = [each.frequency_penalty for each in params]
        host["presence"][indices] = [each.presence_penalty for each in params]
    if biased := adjusted.biased:
        _fill_entries(
            biased,
            ids=[each.state.bias_ids for each in biased],
            row_part=host["biased_rows"],
            id_part=host["biased_ids"],
        )
        host["bias"][:] = _joined([each.state.bias for each in biased], dtype=np.float32)
    if early := adjusted.early:
        _fill_entries(
            early,
            ids=[each.state.end_ids for each in early],
            row_part=host["forbidden_rows"],
            id_part=host["forbidden_ids"],
        )
    host["masked_rows"][:] = list(adjusted.masks)
    for place, mask in enumerate(adjusted.masks.values()):
        host["masks"][place] = mask


def _fill_entries(
    rows: SequenceOf[AdjustedRow],
    *,
    ids: SequenceOf["array[int]"],
    row_part: _Array,
    id_part: _Array,
) -> None:
    row_part[:] = np.repeat([each.index for each in rows], [len(part) for part in ids])
    id_part[:] = _joined(ids, dtype=np.int64)


def _joined(
    parts: "SequenceOf[array[int]] | SequenceOf[array[float]]",
    *,
    dtype: type[np.int64] | type[np.float32],
) -> _Array:
    # A copy, because an array cannot grow while another looks at it.
    return np.frombuffer(b"".join(parts), dtype=dtype)
