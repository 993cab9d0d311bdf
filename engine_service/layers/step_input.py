"""One step as tensors, the same for every layer and every model."""

from dataclasses import dataclass

from torch import Tensor

from engine_service.kernels.reference import AttentionGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInput:
    """Tokens of all rows, one after the other.

    slots: where each token's K and V go, as block * block_size + offset.
    sampled: which tokens' logits are wanted.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    sampled: Tensor
    groups: tuple[AttentionGroup, ...]
