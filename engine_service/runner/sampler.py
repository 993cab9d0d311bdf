"""Chooses the next token of each sampled sequence.

A row's choice depends on its own logits, parameters, seed and position, and on nothing else in the
batch: one uniform number a token is hashed from seed and position, then looked up in the cumulative
distribution. Therefore no sum here may change its order of addition with the number of rows:
softmax and numpy's sums work row by row, torch's ``sum`` does not. What few requests ask for is
looked at only in their rows.
"""

import logging
from collections.abc import Collection
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from engine_service.errors import EngineError
from engine_service.protocol import TokenLogprob
from engine_service.runner.logit_adjustments import AdjustedRow, adjust
from engine_service.runner.logprobs import token_logprobs
from engine_service.runner.redrawing import forbid_refused, held_rows, refused_rows
from engine_service.runner.sample_row import SampleRow

logger = logging.getLogger(__name__)

# Filters look at this many best tokens first, always as many, so that ties fall the same way in
# any batch; a row that needs more has all of its values sorted.
_N_CANDIDATES = 512
_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """token_ids: one a row; None where there is none to choose: ``errors`` says why, by row, and
    has no entry where the logits were not finite. logprobs: by row, only where asked for."""

    token_ids: list[int | None]
    errors: dict[int, EngineError] = field(default_factory=dict)
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict)


def sample(logits: Tensor, *, rows: SequenceOf[SampleRow]) -> Samples:
    """Choose from float32 ``logits``, a row each; those of rows with a state are changed."""
    wanted = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    logprobs = logits[wanted].log_softmax(dim=-1) if wanted else None
    errors = _adjust(logits, rows=rows)
    token_ids = _choose(logits, rows=rows)
    errors |= _redraw(logits, rows=rows, token_ids=token_ids, failed=errors.keys())
    for i in errors:
        token_ids[i] = None
    if logprobs is None:
        return Samples(token_ids=token_ids, errors=errors)
    chosen = [token_ids[i] for i in wanted]
    entries = token_logprobs(
        logprobs,
        token_ids=[token_id or 0 for token_id in chosen],
        n_top=[rows[i].params.logprobs or 0 for i in wanted],
    )
    return Samples(
        token_ids=token_ids,
        errors=errors,
        logprobs={
            i: entry
            for i, entry, token_id in zip(wanted, entries, chosen, strict=True)
            if token_id is not None
        },
    )


def _adjust(logits: Tensor, *, rows: SequenceOf[SampleRow]) -> dict[int, EngineError]:
    adjusted: list[AdjustedRow] = []
    errors: dict[int, EngineError] = {}
    for i, row in enumerate(rows):
        if row.state is None:
            continue
        try:
            row.state.catch_up(row.token_ids)
        except Exception as error:  # a mask's own
            logger.exception("a mask refused a token")
            errors[i] = EngineError(f"the mask of allowed tokens failed: {error}")
            continue
        adjusted.append(AdjustedRow(i, row, row.state))
    return errors | adjust(logits, rows=adjusted) if adjusted else errors


def _redraw(
    logits: Tensor,
    *,
    rows: SequenceOf[SampleRow],
    token_ids: list[int | None],
    failed: Collection[int],
) -> dict[int, EngineError]:
    """Draw again where a mask refuses what was drawn; return what must fail instead, by row."""
    errors: dict[int, EngineError] = {}
    to_check = [i for i in held_rows(rows) if i not in failed]
    while refused := refused_rows(rows, token_ids=token_ids, to_check=to_check):
        again = [replace(rows[i], is_again=True) for i in refused]
        remaining = logits[refused]
        for place, error in forbid_refused(remaining, rows=again).items():
            errors[refused[place]] = error
        for i, token_id in zip(refused, _choose(remaining, rows=again), strict=True):
            token_ids[i] = token_id
        # Behind what was drawn now stands another draw only where this is the guess.
        to_check = [
            i + 1 for i in refused if token_ids[i] is not None and token_ids[i] == rows[i].drafted
        ]
    return errors


def _choose(logits: Tensor, *, rows: SequenceOf[SampleRow]) -> list[int | None]:
    best_ids = torch.from_numpy(logits.numpy().argmax(axis=-1))
    best = logits.gather(1, best_ids[:, None])
    usable = best.isfinite()[:, 0].tolist()
    chosen = [
        token_id if ok else None for token_id, ok in zip(best_ids.tolist(), usable, strict=True)
    ]
    drawn = [i for i, row in enumerate(rows) if usable[i] and not row.is_greedy]
    for name, draw in _DRAWS:
        which = [i for i in drawn if rows[i].filter == name]
        if which:
            scaled = logits[which].sub_(best[which])
            scaled /= torch.tensor([rows[i].params.temperature for i in which])[:, None]
            token_ids = draw(scaled, [rows[i] for i in which])
            for i, token_id in zip(which, token_ids, strict=True):
                chosen[i] = token_id
    return chosen


def _draw_plain(scaled: Tensor, rows: SequenceOf[SampleRow]) -> list[int]:
    return _invert(scaled.exp_(), rows=rows)


def _draw_min_p(scaled: Tensor, rows: SequenceOf[SampleRow]) -> list[int]:
    weights = scaled.exp_()  # 1 for the best token
    floor = _floor(torch.ones(len(rows)), rows=rows)
    return _invert(weights.masked_fill_(weights < floor, 0.0), rows=rows)


def _draw_filtered(scaled: Tensor, rows: SequenceOf[SampleRow]) -> list[int]:
    probabilities = scaled.softmax(dim=-1)
    values, ids = probabilities.topk(min(_N_CANDIDATES, probabilities.shape[-1]), dim=-1)
    token_ids = _draw_sorted(values, ids=ids, rows=rows)
    covered = values.cumsum(dim=-1, dtype=torch.float64)[:, -1].tolist()
    wide = [
        i
        for i, row in enumerate(rows)
        if row.params.top_k > values.shape[-1]
        or (row.params.top_k == 0 and covered[i] < row.params.top_p)
    ]
    if wide:
        drawn = _draw_above_cutoff(probabilities[wide], rows=[rows[i] for i in wide])
        for i, token_id in zip(wide, drawn, strict=True):
            token_ids[i] = token_id
    return token_ids


def _draw_sorted(values: Tensor, *, ids: Tensor, rows: SequenceOf[SampleRow]) -> list[int]:
    """Draw from the ``top_k`` best, and of those from the nucleus that holds ``top_p`` of them.

    In the order of ids, as everywhere: a seed means the same token whoever draws it.
    """
    ids, order = ids.sort(dim=-1)
    weights = _filtered(values, rows=rows).gather(1, order)
    places = torch.tensor(_invert(weights, rows=rows))
    drawn: list[int] = ids.gather(1, places[:, None])[:, 0].tolist()
    return drawn


def _draw_above_cutoff(probabilities: Tensor, *, rows: SequenceOf[SampleRow]) -> list[int]:
    """The same for a nucleus of any size: sorts values alone, which is many times as fast.

    Of tokens as likely as the last that stays, those of the lowest ids do, as in a stable sort.
    """
    values = -torch.from_numpy(np.sort(-probabilities.numpy(), axis=-1))
    n_kept = (_filtered(values, rows=rows) > 0.0).sum(dim=-1, keepdim=True)
    cutoff = values.gather(1, n_kept - 1)
    n_ties = n_kept - (values > cutoff).sum(dim=-1, keepdim=True)
    ties = probabilities == cutoff
    kept = (probabilities > cutoff) | (ties & (ties.cumsum(dim=-1) <= n_ties))
    return _invert(probabilities.masked_fill(~kept, 0.0), rows=rows)


def _filtered(values: Tensor, *, rows: SequenceOf[SampleRow]) -> Tensor:
    """Return float64 ``values``, which come best first, with 0 for those that are left out."""
    n_columns = values.shape[-1]
    top_k = torch.tensor([min(row.params.top_k or n_columns, n_columns) for row in rows])
    top_p = torch.tensor([row.params.top_p for row in rows], dtype=torch.float64)
    limited = torch.tensor([row.params.top_k > 0 for row in rows])
    values = values.double().masked_fill(torch.arange(n_columns) >= top_k[:, None], 0.0)
    cumulative = values.cumsum(dim=-1)
    # Without top_k the candidates are part of a whole that sums to 1, not the whole themselves.
    whole = torch.where(limited, cumulative[:, -1], 1.0)
    outside = cumulative - values >= (top_p * whole)[:, None]
    outside |= values < _floor(values[:, 0], rows=rows)
    outside[:, 0] = False  # also where top_p times the whole is too small to be a number
    return values.masked_fill(outside, 0.0)


def _floor(best: Tensor, *, rows: SequenceOf[SampleRow]) -> Tensor:
    """Return for each row the probability under which min_p leaves a token out.

    (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082)
    """
    return (best * torch.tensor([row.params.min_p for row in rows], dtype=best.dtype))[:, None]


def _invert(weights: Tensor, *, rows: SequenceOf[SampleRow]) -> list[int]:
    """Return for each row the column at which the running sum passes its number's part of all.

    First the block of columns is found, then the column in it: running sums over whole rows would
    cost more than all else here. numpy adds up row by row, whatever the number of rows.
    """
    n_rows, n_columns = weights.shape
    blocks = torch.nn.functional.pad(weights, (0, -n_columns % _BLOCK)).numpy()
    blocks = blocks.reshape(n_rows, -1, _BLOCK)
    sums = blocks.sum(axis=-1).cumsum(axis=-1, dtype=np.float64)
    numbers = np.array([row.uniform for row in rows])
    targets = numbers * sums[:, -1]
    every = np.arange(n_rows)
    block = (sums <= targets[:, None]).sum(axis=-1)
    before = np.where(block > 0, sums[every, block - 1], 0.0)
    inner = blocks[every, block].cumsum(axis=-1, dtype=np.float64)
    column = (inner <= (targets - before)[:, None]).sum(axis=-1)
    # The block's sum was rounded otherwise than this one: never beyond its last weight.
    last = (inner < inner[:, -1:]).sum(axis=-1)
    places: list[int] = (block * _BLOCK + np.minimum(column, last)).tolist()
    return places


_DRAWS = (("none", _draw_plain), ("min_p", _draw_min_p), ("sorted", _draw_filtered))
