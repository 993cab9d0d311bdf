"""Dense layers."""

from collections.abc import Callable

from torch import Tensor

from engine_service.kernels.dispatch import linear_kernel
from engine_service.kernels.quantization import Matrix, QuantizedWeight


class Linear:
    """weight: (n_out, n_in). Layers that read the same input are fused by stacking their rows.

    The weight stays as it was read until whoever computes with it takes it over: ``pack`` for this
    layer's own product, ``take`` for another's, ``take_quantized`` where it was read in eight bits.
    So no weight is in memory twice for long.
    """

    def __init__(self, weight: Matrix, *, bias: Tensor | None = None) -> None:
        self._weight: Matrix | None = weight
        self._multiply: Callable[[Tensor], Tensor] | None = None
        self.bias = bias

    def pack(self) -> None:
        """Make ready for the layer's own product."""
        self._multiply = linear_kernel(self.take(), bias=self.bias)

    def take(self) -> Tensor:
        """Hand the weight over; the layer holds it no longer. Raises RuntimeError the next time."""
        weight = self._handed_over()
        assert isinstance(weight, Tensor)
        return weight

    def take_quantized(self) -> QuantizedWeight:
        """Do the same with a weight of eight bits."""
        weight = self._handed_over()
        assert isinstance(weight, QuantizedWeight)
        return weight

    def __call__(self, x: Tensor) -> Tensor:
        if self._multiply is None:
            raise RuntimeError("this layer was not packed")
        return self._multiply(x)

    def _handed_over(self) -> Matrix:
        if self._weight is None:
            raise RuntimeError("the weight of this layer was taken already")
        weight, self._weight = self._weight, None
        return weight
