"""Chooses the next token of each sampled sequence.

A row's choice depends on its own logits, parameters, seed and position, and on nothing else in the
batch: one uniform number a token is hashed from seed and position, then looked up in the cumulative
distribution. Therefore no sum here may change its order of addition with the number of rows:
softmax and cumsum work row by row, torch's ``sum`` does not.
"""

import hashlib
import struct
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from engine_service.protocol import SamplingParams

# Below this, the best token has all of the probability that float32 can tell from 1.
_GREEDY_BELOW_TEMPERATURE = 1e-5
# Filters look at this many best tokens first, always as many, so that ties fall the same way in
# any batch; a row that needs more is sorted whole.
_N_CANDIDATES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """n_generated: tokens that the sequence has produced before this one."""

    params: SamplingParams
    seed: int
    n_generated: int

    @property
    def is_greedy(self) -> bool:
        return self.params.temperature < _GREEDY_BELOW_TEMPERATURE

    @property
    def is_filtered(self) -> bool:
        return self.params.top_k > 0 or self.params.top_p < 1.0

    @property
    def uniform(self) -> float:
        return uniform(self.seed, position=self.n_generated)


def uniform(seed: int, *, position: int) -> float:
    """Return a number in [0, 1), always the same for a seed and a position."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 16) / 2.0**48


def sample(logits: Tensor, *, rows: SequenceOf[SampleRow]) -> list[int | None]:
    """Return one token id per row of float32 ``logits``; None where they are not finite."""
    best, best_ids = logits.max(dim=-1)
    usable = best.isfinite().tolist()
    chosen = [
        token_id if ok else None for token_id, ok in zip(best_ids.tolist(), usable, strict=True)
    ]
    drawn = [i for i, row in enumerate(rows) if usable[i] and not row.is_greedy]
    for is_filtered, draw in ((False, _draw_plain), (True, _draw_filtered)):
        which = [i for i in drawn if rows[i].is_filtered == is_filtered]
        if which:
            temperatures = torch.tensor([rows[i].params.temperature for i in which])
            scaled = (logits[which] - best[which, None]) / temperatures[:, None]
            token_ids = draw(scaled.softmax(dim=-1), [rows[i] for i in which])
            for i, token_id in zip(which, token_ids, strict=True):
                chosen[i] = token_id
    return chosen


def _draw_plain(probabilities: Tensor, rows: SequenceOf[SampleRow]) -> list[int]:
    drawn: list[int] = _invert(probabilities, rows=rows).tolist()
    return drawn


def _draw_filtered(probabilities: Tensor, rows: SequenceOf[SampleRow]) -> list[int]:
    values, ids = probabilities.topk(min(_N_CANDIDATES, probabilities.shape[-1]), dim=-1)
    token_ids = _draw_sorted(values, ids=ids, rows=rows)
    covered = values.cumsum(dim=-1, dtype=torch.float64)[:, -1].tolist()
    for i, row in enumerate(rows):
        top_k = row.params.top_k
        if top_k > values.shape[-1] or (top_k == 0 and covered[i] < row.params.top_p):
            every, every_id = probabilities[i].sort(descending=True, stable=True)
            token_ids[i] = _draw_sorted(every[None], ids=every_id[None], rows=[row])[0]
    return token_ids


def _draw_sorted(values: Tensor, *, ids: Tensor, rows: SequenceOf[SampleRow]) -> list[int]:
    """Draw from the ``top_k`` best, and of those from the nucleus that holds ``top_p`` of them."""
    n_columns = values.shape[-1]
    top_k = torch.tensor([min(row.params.top_k or n_columns, n_columns) for row in rows])
    top_p = torch.tensor([row.params.top_p for row in rows], dtype=torch.float64)
    limited = torch.tensor([row.params.top_k > 0 for row in rows])
    values = values.double().masked_fill(torch.arange(n_columns) >= top_k[:, None], 0.0)
    cumulative = values.cumsum(dim=-1)
    # Without top_k the candidates are part of a whole that sums to 1, not the whole themselves.
    whole = torch.where(limited, cumulative[:, -1], 1.0)
    outside = cumulative - values >= (top_p * whole)[:, None]
    places = _invert(values.masked_fill(outside, 0.0), rows=rows)
    drawn: list[int] = ids.gather(1, places[:, None])[:, 0].tolist()
    return drawn


def _invert(weights: Tensor, *, rows: SequenceOf[SampleRow]) -> Tensor:
    """Return for each row the first column at which the running sum passes its number."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    numbers = torch.tensor([row.uniform for row in rows], dtype=torch.float64)
    targets = (numbers * cumulative[:, -1])[:, None]
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]
