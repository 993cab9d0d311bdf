"""Dense layers."""

from collections.abc import Callable

from torch import Tensor

from engine_service.kernels.dispatch import linear_kernel


class Linear:
    """weight: (n_out, n_in). Layers that read the same input are fused by stacking their rows.

    The weight stays as it was read until whoever computes with it takes it over: ``pack`` for this
    layer's own product, ``take`` for another's. So no weight is in memory twice for long.
    """

    def __init__(self, weight: Tensor, *, bias: Tensor | None = None) -> None:
        self._weight: Tensor | None = weight
        self._multiply: Callable[[Tensor], Tensor] | None = None
        self.bias = bias

    def pack(self) -> None:
        """Make ready for the layer's own product."""
        self._multiply = linear_kernel(self.take(), bias=self.bias)

    def take(self) -> Tensor:
        """Hand the weight over; the layer holds it no longer. Raises RuntimeError the next time."""
        if self._weight is None:
            raise RuntimeError("the weight of this layer was taken already")
        weight, self._weight = self._weight, None
        return weight

    def __call__(self, x: Tensor) -> Tensor:
        if self._multiply is None:
            raise RuntimeError("this layer was not packed")
        return self._multiply(x)
