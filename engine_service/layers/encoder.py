"""The encoder: attention over a whole text, then a feed-forward layer, each normalised after.

Batches are texts of like length, padded at the end; padding is never attended to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from engine_service.layers.layernorm import LayerNorm
from engine_service.layers.linear import Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderLayer:
    """qkv: q heads, then k heads, then v heads in one projection."""

    qkv: Linear
    output: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    feed_forward_norm: LayerNorm
    n_heads: int

    def __call__(self, x: Tensor, *, mask: Tensor | None) -> Tensor:
        x = self.attention_norm(x + self.output(self._attend(x, mask=mask)))
        return self.feed_forward_norm(x + self.down(functional.gelu(self.up(x))))

    def _attend(self, x: Tensor, *, mask: Tensor | None) -> Tensor:
        n_texts, n_tokens, size = x.shape
        qkv = self.qkv(x).view(n_texts, n_tokens, 3, self.n_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attended.transpose(1, 2).reshape(n_texts, n_tokens, size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """tokens: (vocab_size, hidden_size). positions: (n_positions, hidden_size), to which the
    vector of the one token type that is used was added. ``pack`` makes ready for ``forward``."""

    tokens: Tensor
    positions: Tensor
    norm: LayerNorm
    layers: Sequence[EncoderLayer]

    def pack(self) -> None:
        """Lay the weights out for the reference kernels."""
        for layer in self.layers:
            for linear in (layer.qkv, layer.output, layer.up, layer.down):
                linear.pack()

    def forward(self, token_ids: Tensor, *, is_token: Tensor) -> Tensor:
        """Return (n_texts, n_tokens, hidden_size); rows of padding mean nothing.

        token_ids: (n_texts, n_tokens). is_token: the same shape, False where there is padding.
        """
        x = functional.embedding(token_ids, self.tokens) + self.positions[: token_ids.shape[1]]
        x = self.norm(x)
        mask = None if bool(is_token.all()) else is_token[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask=mask)
        return x
