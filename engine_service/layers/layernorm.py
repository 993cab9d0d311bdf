"""Normalisation: by root mean square (https://arxiv.org/abs/1910.07467), and by mean and variance
(https://arxiv.org/abs/1607.06450)."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from engine_service.kernels import reference


@dataclass(frozen=True, slots=True, kw_only=True)
class RMSNorm:
    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return reference.rms_norm(x, weight=self.weight, eps=self.eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
