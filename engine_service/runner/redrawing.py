"""Holds a draw to its mask after it is made: where the mask refuses the token, it is drawn again
among those that it allows.

That is the distribution of the masked logits. Of tokens that may come, which have the share Z of
all, the first draw gives t with p(t), and the second, after the 1 - Z that is refused, with
(1 - Z) p(t) / Z: together p(t) / Z. (Rejection sampling, von Neumann 1951.) To check a token costs
microseconds, to make a mask up to a millisecond; a model that was told of the schema is refused
hardly ever. The greedy choice is kept or made again likewise.
"""

import logging
from collections.abc import Sequence as SequenceOf

from torch import Tensor

from engine_service.errors import EngineError
from engine_service.runner.masking import forbid, no_token_allowed, read_masks
from engine_service.runner.sample_row import SampleRow, mask_comes_first

logger = logging.getLogger(__name__)


def held_rows(rows: SequenceOf[SampleRow]) -> list[int]:
    """Return the first row of each sequence whose draws are checked after they are made."""
    return [
        i
        for i, row in enumerate(rows)
        if row.n_ahead == 0
        and row.state is not None
        and row.state.mask is not None
        and not mask_comes_first(row.params)
    ]


def refused_rows(
    rows: SequenceOf[SampleRow], *, token_ids: SequenceOf[int | None], to_check: SequenceOf[int]
) -> list[int]:
    """Return, for each row of ``to_check``, the first from there on whose token the mask of its
    sequence refuses, if there is one before the first wrong guess."""
    refused = []
    for i in to_check:
        row = rows[i]
        assert row.state is not None and row.state.mask is not None
        chain = _chain(token_ids[i : i + 1 + len(row.draft) - row.n_ahead], rows=rows[i:])
        try:
            n_allowed = row.state.mask.n_allowed([*row.draft[: row.n_ahead], *chain]) - row.n_ahead
        except Exception:  # making the mask raises it again, and says whose it is
            logger.debug("a mask did not check a token", exc_info=True)
            n_allowed = 0
        if n_allowed < len(chain):
            refused.append(i + max(n_allowed, 0))
    return refused


def forbid_refused(logits: Tensor, *, rows: SequenceOf[SampleRow]) -> dict[int, EngineError]:
    """Leave in ``logits``, of these rows alone, what their masks allow; return what must fail."""
    masks, errors = read_masks(list(enumerate(rows)), vocab_size=logits.shape[-1])
    forbid(logits, masks=masks)
    for index in logits.amax(dim=-1).isneginf().nonzero()[:, 0].tolist():
        state = rows[index].state
        if index in masks and state is not None and state.mask is not None:
            errors[index] = no_token_allowed(state.mask.param)
    return errors


def _chain(token_ids: SequenceOf[int | None], *, rows: SequenceOf[SampleRow]) -> list[int]:
    """Return what was drawn up to the first token that is not the drafted one."""
    chain = []
    for token_id, row in zip(token_ids, rows, strict=False):
        if token_id is None:
            break
        chain.append(token_id)
        if token_id != row.drafted:
            break
    return chain
