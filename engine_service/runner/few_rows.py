"""The steps of few rows, five launches a layer: there a launch costs as much as what it computes.

Nothing may be launched between the kernels of ``logits``, which may start before the one before
them has ended (``kernels.triton.dependent_launch``).
"""

import logging
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from engine_service.kernels.device import DeviceKernels, PagedRows
from engine_service.runner.layer_weights import LayerWeights

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FewRows:
    """max_rows: of a step. counters: int32 (max_rows * n_kv_heads,), zeros between steps."""

    kernels: DeviceKernels
    layers: SequenceOf[LayerWeights[Tensor]]
    norm: Tensor
    head: Tensor
    rotary: Tensor
    eps: float
    head_dim: int
    max_rows: int
    counters: Tensor

    @classmethod
    def make(
        cls,
        kernels: DeviceKernels,
        *,
        layers: SequenceOf[LayerWeights[Tensor]],
        norm: Tensor,
        head: Tensor,
        rotary: Tensor,
        eps: float,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
    ) -> "FewRows | None":
        """Return None where the kernels do not take a model of these sizes."""
        max_rows = kernels.max_few_rows(group=n_heads // n_kv_heads, head_dim=head_dim)
        if not max_rows:
            logger.info(
                "steps of few rows run as others: kernels %s have none for %d query heads of %d "
                "to a K/V head",
                kernels.name,
                n_heads // n_kv_heads,
                head_dim,
            )
            return None
        return cls(
            kernels=kernels,
            layers=layers,
            norm=norm,
            head=head,
            rotary=rotary,
            eps=eps,
            head_dim=head_dim,
            max_rows=max_rows,
            counters=torch.zeros(max_rows * n_kv_heads, dtype=torch.int32, device=head.device),
        )

    def logits(
        self,
        x: Tensor,
        *,
        positions: Tensor,
        slots: Tensor,
        rows: PagedRows,
        caches: SequenceOf[tuple[Tensor, Tensor]],
        scale: float,
    ) -> Tensor:
        """Return the logits (n_rows, vocab) of (n_rows, hidden) embedded tokens, which are
        overwritten. Their embedding has to be what was launched last: of the rest the kernels read
        some before they wait."""
        kernels, eps = self.kernels, self.eps
        for layer, (k_cache, v_cache) in zip(self.layers, caches, strict=True):
            qkv = kernels.norm_linear(
                x,
                norm_weight=layer.attention_norm,
                eps=eps,
                weight=layer.qkv,
                bias=layer.qkv_bias,
            )
            attended = kernels.rotate_store_attend(
                qkv.view(len(x), -1, self.head_dim),
                rotary=self.rotary,
                positions=positions,
                slots=slots,
                k_cache=k_cache,
                v_cache=v_cache,
                q_norm=layer.q_norm,
                k_norm=layer.k_norm,
                eps=eps,
                rows=rows,
                scale=scale,
                counters=self.counters,
            )
            kernels.linear_add(attended, weight=layer.output, residual=x)
            inner = kernels.norm_gate_up_swiglu(
                x, norm_weight=layer.feed_forward_norm, eps=eps, weight=layer.gate_up
            )
            kernels.linear_add(inner, weight=layer.down, residual=x)
        return kernels.norm_linear(x, norm_weight=self.norm, eps=eps, weight=self.head)
