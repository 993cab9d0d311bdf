"""The gated feed-forward layer of the Llama family (https://arxiv.org/abs/2002.05202)."""

from dataclasses import dataclass

from torch import Tensor

from engine_service.kernels import reference
from engine_service.layers.linear import Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """gate_up: the gate's rows, then the up projection's."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(reference.swiglu(self.gate_up(x)))
