"""Dense layers."""

from torch import Tensor

from engine_service.kernels.dispatch import linear_kernel


class Linear:
    """weight: (n_out, n_in). Layers that read the same input are fused by stacking their rows."""

    def __init__(self, weight: Tensor, *, bias: Tensor | None = None) -> None:
        self._multiply = linear_kernel(weight, bias=bias)

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x)
