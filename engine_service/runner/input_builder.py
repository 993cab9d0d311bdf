"""Turns a batch into the tensors of one step."""

import torch

from engine_service.kernels.reference import AttentionRow, plan_attention
from engine_service.layers.step_input import StepInput
from engine_service.scheduling.batch import Batch


def build_step_input(batch: Batch, *, block_size: int, dtype: torch.dtype) -> StepInput:
    """Return the tensors of all rows' tokens, one row after the other."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    attention_rows = []
    for row in batch.rows:
        table = row.sequence.block_table
        row_positions = range(row.n_computed, row.end)
        token_ids += row.token_ids
        positions += row_positions
        slots += [table[i // block_size] * block_size + i % block_size for i in row_positions]
        n_blocks = -(-row.end // block_size)
        attention_rows.append(
            AttentionRow(n_new=row.n_new, context_len=row.end, block_table=table[:n_blocks])
        )
    return StepInput(
        token_ids=torch.tensor(token_ids),
        positions=torch.tensor(positions),
        slots=torch.tensor(slots),
        sampled=torch.tensor(batch.logit_places(), dtype=torch.int64),
        groups=plan_attention(attention_rows, block_size=block_size, dtype=dtype),
    )
