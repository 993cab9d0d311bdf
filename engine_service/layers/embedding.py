"""Token embedding."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Embedding:
    """weight: (vocab_size, hidden_size)."""

    weight: Tensor

    def __call__(self, token_ids: Tensor) -> Tensor:
        return functional.embedding(token_ids, self.weight)
