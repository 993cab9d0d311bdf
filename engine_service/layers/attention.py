"""Self-attention over a paged KV cache, with grouped K/V heads."""

from dataclasses import dataclass

from torch import Tensor

from engine_service.kernels import reference
from engine_service.layers.layernorm import RMSNorm
from engine_service.layers.linear import Linear
from engine_service.layers.step_input import StepInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """qkv: q heads, then k heads, then v heads in one projection.

    q_norm, k_norm: taken of each head before it is rotated, where the family has them.
    """

    qkv: Linear
    output: Linear
    n_heads: int
    n_kv_heads: int
    head_dim: int
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None

    def __call__(
        self, x: Tensor, *, step: StepInput, rotary: tuple[Tensor, Tensor], cache: Tensor
    ) -> Tensor:
        n_rotated = self.n_heads + self.n_kv_heads
        qkv = self.qkv(x).view(x.shape[0], n_rotated + self.n_kv_heads, self.head_dim)
        if self.q_norm is not None:
            qkv[:, : self.n_heads] = self.q_norm(qkv[:, : self.n_heads])
        if self.k_norm is not None:
            qkv[:, self.n_heads : n_rotated] = self.k_norm(qkv[:, self.n_heads : n_rotated])
        cos, sin = rotary
        qkv[:, :n_rotated] = reference.rotate(qkv[:, :n_rotated], cos=cos, sin=sin)
        kv = qkv[:, self.n_heads :].view(x.shape[0], 2, self.n_kv_heads, self.head_dim)
        reference.store_kv(kv, cache=cache, slots=step.slots)
        attended = reference.paged_attention(
            qkv[:, : self.n_heads], cache=cache, groups=step.groups, scale=self.head_dim**-0.5
        )
        return self.output(attended)
