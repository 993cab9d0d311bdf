"""Dense layers without bias."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Linear:
    """weight: (n_out, n_in). Layers that read the same input are fused by stacking their rows."""

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)
