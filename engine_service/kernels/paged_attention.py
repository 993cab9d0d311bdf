"""What computes attention over the KV pool: our own kernels, or a library's beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from engine_service.kernels.device import PagedRows


class PagedAttention(Protocol):
    """name: for people and the log."""

    name: str

    def decode_attention(
        self, q: Tensor, *, k_cache: Tensor, v_cache: Tensor, rows: PagedRows, scale: float
    ) -> Tensor:
        """Do as ``DeviceKernels.decode_attention``, within a CUDA graph too; a library may return
        any numbers for a context of none."""

    def prefill_attention(
        self, q: Tensor, *, k_cache: Tensor, v_cache: Tensor, rows: PagedRows, scale: float
    ) -> Tensor:
        """Do as ``DeviceKernels.prefill_attention``, outside of graphs. ``rows`` has its ``host``;
        calls with the same one are layers of one step, and two steps are in flight at most."""


Phase = Literal["decode", "prefill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """What the steps of a model attend with. times_us: of one layer, by phase and name, summed over
    the steps that were timed; refused: why, by name. Both are empty where nothing was to choose."""

    decode: PagedAttention
    prefill: PagedAttention
    times_us: Mapping[Phase, Mapping[str, float]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, kernels: PagedAttention) -> "Attention":
        return cls(decode=kernels, prefill=kernels)

    def named(self, kernels: str) -> str:
        """Return the name of ``kernels`` and what attends in their place, for people."""
        phases = (("decode", self.decode), ("prefill", self.prefill))
        others = [f"{each.name} {phase}" for phase, each in phases if each.name != kernels]
        return " with ".join([kernels, *([" and ".join(others)] if others else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """What a library has to take. n_heads and n_kv_heads are those of this device; dtype is that of
    queries, kv_dtype that of the pool."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    device: torch.device


class UnfitError(Exception):
    """A library is there and does not do for this model or this pool; the message says why."""


class MissingError(UnfitError):
    """It is not installed."""
