"""Root-mean-square normalisation (https://arxiv.org/abs/1910.07467)."""

from dataclasses import dataclass

from torch import Tensor

from engine_service.kernels import reference


@dataclass(frozen=True, slots=True, kw_only=True)
class RMSNorm:
    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return reference.rms_norm(x, weight=self.weight, eps=self.eps)
