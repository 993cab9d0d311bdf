"""Rotary position embedding (https://arxiv.org/abs/2104.09864), from tables made once."""

import torch
from torch import Tensor


class RotaryEmbedding:
    """cos and sin of every position of the context, in the layout of ``reference.rotate``."""

    def __init__(
        self, *, head_dim: int, theta: float, max_model_len: int, dtype: torch.dtype
    ) -> None:
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        frequencies = 1.0 / theta**exponents
        angles = torch.outer(torch.arange(max_model_len).float(), frequencies)
        cos, sin = angles.cos(), angles.sin()
        self._cos = torch.cat((cos, cos), dim=-1).to(dtype)
        self._sin = torch.cat((-sin, sin), dim=-1).to(dtype)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, each (n_tokens, 1, head_dim)."""
        return self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)
