"""Rotary position embedding (https://arxiv.org/abs/2104.09864), from tables made once."""

import math

import torch
from torch import Tensor

from engine_service.rotary import LinearScaling, Llama3Scaling, RotaryConfig, YarnScaling


class RotaryEmbedding:
    """table: float32 (max_model_len, head_dim), of every position of the context the cosines of
    half a head, then its sines."""

    def __init__(
        self, config: RotaryConfig, *, head_dim: int, max_model_len: int, dtype: torch.dtype
    ) -> None:
        frequencies = rotary_frequencies(config, head_dim=head_dim)
        angles = torch.outer(torch.arange(max_model_len).float(), frequencies)
        cos, sin = angles.cos(), angles.sin()
        if isinstance(config.scaling, YarnScaling):
            cos *= config.scaling.attention_factor
            sin *= config.scaling.attention_factor
        self.table = torch.cat((cos, sin), dim=-1)
        self._dtype = dtype

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, each (n_tokens, 1, head_dim), in the layout of ``rotate``."""
        cos, sin = self.table[positions].to(self._dtype).unsqueeze(1).chunk(2, dim=-1)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotary_frequencies(config: RotaryConfig, *, head_dim: int) -> Tensor:
    """Return the (head_dim / 2) radians per position, in float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    divisors = config.theta**exponents
    match config.scaling:
        case None:
            return 1.0 / divisors
        case LinearScaling(factor=factor):
            return 1.0 / divisors / factor
        case Llama3Scaling():
            return _llama3(1.0 / divisors, scaling=config.scaling)
        case YarnScaling():
            return _yarn(divisors, scaling=config.scaling, theta=config.theta)


def _llama3(frequencies: Tensor, *, scaling: Llama3Scaling) -> Tensor:
    original, factor = scaling.original_context, scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2.0 * math.pi / frequencies
    kept = (original / wavelengths - low) / (high - low)
    blended = (1.0 - kept) * frequencies / factor + kept * frequencies
    stretched = torch.where(wavelengths > original / low, frequencies / factor, blended)
    return torch.where(wavelengths < original / high, frequencies, stretched)


def _yarn(divisors: Tensor, *, scaling: YarnScaling, theta: float) -> Tensor:
    n, head_dim = len(divisors), 2 * len(divisors)

    def dimension(n_rotations: float) -> float:
        """Where a wave turns ``n_rotations`` times within the original context."""
        turns = scaling.original_context / (n_rotations * 2.0 * math.pi)
        return head_dim * math.log(turns) / (2.0 * math.log(theta))

    start, end = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        start, end = math.floor(start), math.ceil(end)
    start, end = max(start, 0), min(end, head_dim - 1)
    if start == end:
        end += 0.001  # A ramp needs some length.
    stretch = ((torch.arange(n, dtype=torch.float32) - start) / (end - start)).clamp(0.0, 1.0)
    kept = 1.0 - stretch
    return 1.0 / (scaling.factor * divisors) * (1.0 - kept) + 1.0 / divisors * kept
