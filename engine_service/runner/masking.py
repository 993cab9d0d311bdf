"""Forbids the tokens that a row's mask does not allow."""

import logging
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_service.errors import EngineError, RequestError
from engine_service.runner.sample_row import SampleRow
from engine_service.scheduling.token_mask import n_mask_bytes

logger = logging.getLogger(__name__)

# What each byte of a mask adds to its eight logits. To add is six times as fast as to fill.
_ADDED: Final = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=-1, bitorder="little"),
    np.float32(0.0),
    np.float32(-np.inf),
)
_Bytes = NDArray[np.uint8]


def read_masks(
    rows: SequenceOf[tuple[int, SampleRow]], *, vocab_size: int
) -> tuple[dict[int, _Bytes], dict[int, EngineError]]:
    """Return the masks by row, and what is wrong with the others.

    rows: those that have a mask, each with its place in the logits.
    """
    masks: dict[int, _Bytes] = {}
    errors: dict[int, EngineError] = {}
    for index, row in rows:
        try:
            masks[index] = _read(row, n_bytes=n_mask_bytes(vocab_size))
        except EngineError as error:
            errors[index] = error
        except Exception as error:  # of whoever made the mask
            logger.exception("a mask failed")
            errors[index] = EngineError(f"the mask of allowed tokens failed: {error}")
    return masks, errors


def forbid(logits: Tensor, *, masks: Mapping[int, _Bytes]) -> None:
    """Set to minus infinity what the masks of some rows do not allow."""
    indices = sorted(masks)
    for start, end in _runs(indices):
        neighbours = indices[start:end]
        added: NDArray[Any] = _ADDED.take(np.stack([masks[index] for index in neighbours]), axis=0)
        logits[neighbours[0] : neighbours[-1] + 1] += torch.from_numpy(
            added.reshape(len(neighbours), -1)
        )[:, : logits.shape[-1]]


def no_token_allowed(param: str) -> RequestError:
    return RequestError(
        f"{param} leaves no token that may come next.", code="no_token_allowed", param=param
    )


def _read(row: SampleRow, *, n_bytes: int) -> _Bytes:
    assert row.state is not None and row.state.mask is not None
    allowed = row.state.mask.allowed(row.draft[: row.n_ahead])
    mask = np.frombuffer(allowed, dtype=np.uint8)
    if mask.shape != (n_bytes,):
        raise EngineError(f"the mask of allowed tokens is not {n_bytes} bytes long")
    return mask


def _runs(indices: SequenceOf[int]) -> list[tuple[int, int]]:
    """Return the spans of neighbours in ``indices``, which ascend."""
    starts = [i for i, index in enumerate(indices) if i == 0 or index != indices[i - 1] + 1]
    return list(zip(starts, [*starts, len(indices)][1:], strict=True))
