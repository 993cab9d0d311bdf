"""Chooses, once at loading, the fastest kernel that this machine has."""

import logging
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from engine_service.kernels import onednn, reference

logger = logging.getLogger(__name__)


def linear_kernel(weight: Tensor, *, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Return the product with ``weight``, an (n_out, n_in) matrix that it may copy, plus bias."""
    if onednn.supports(weight.dtype):
        return partial(onednn.linear, packed=onednn.pack(weight), bias=bias)
    _warn_once(weight.dtype)
    return partial(reference.linear, weight=weight, bias=bias)


@cache
def _warn_once(dtype: torch.dtype) -> None:
    logger.warning("oneDNN lacks %s here: matrix products are slow", dtype)
