"""Which part of a model one of several processes holds: tensor parallelism by heads and by inner
rows (Megatron-LM, https://arxiv.org/abs/1909.08053, section 3)."""

import dataclasses
from dataclasses import dataclass
from typing import Final

from engine_service.config import ModelConfig
from engine_service.errors import ModelError


@dataclass(frozen=True, slots=True)
class Shard:
    """Part ``rank`` of ``n_ranks``.

    The projections of q, k, v, gate and up are cut by their rows, so that each rank computes some
    heads and some inner values; those behind them by their columns, so that each rank's products
    are summands. The head is cut by its rows, the vocabulary. Embedding and norms are whole
    everywhere. Where there are fewer K/V heads than ranks, those whose query heads share one hold
    it each.
    """

    rank: int = 0
    n_ranks: int = 1

    def check(self, config: ModelConfig) -> None:
        """Raises ModelError where the model cannot be cut so."""
        for name, size in (
            ("num_attention_heads", config.n_heads),
            ("intermediate_size", config.intermediate_size),
        ):
            if size % self.n_ranks:
                raise ModelError(
                    f"tensor_parallel ({self.n_ranks}) does not divide the model's {name} ({size})"
                )
        n_kv_heads = config.n_kv_heads
        if n_kv_heads % self.n_ranks and self.n_ranks % n_kv_heads:
            raise ModelError(
                f"tensor_parallel ({self.n_ranks}) must divide the model's num_key_value_heads "
                f"({n_kv_heads}) or be a multiple of it"
            )

    def check_groups(self, config: ModelConfig, *, group: int) -> None:
        """Raises ModelError where a cut goes through ``group`` neighbouring inputs of a product,
        which have a scale in common."""
        for name, size in (
            ("num_attention_heads times head_dim", config.n_heads * config.head_dim),
            ("intermediate_size", config.intermediate_size),
        ):
            if self.n_ranks > 1 and size // self.n_ranks % group:
                raise ModelError(
                    f"tensor_parallel ({self.n_ranks}) cuts the model's {name} ({size}) into parts "
                    f"of {size // self.n_ranks}; quantization int8 needs multiples of {group}"
                )

    def of(self, config: ModelConfig) -> ModelConfig:
        """Return the model's sizes as this rank has them: fewer heads and inner values."""
        kv_heads = self.kv_heads(config.n_kv_heads)
        return dataclasses.replace(
            config,
            n_heads=config.n_heads // self.n_ranks,
            n_kv_heads=kv_heads.stop - kv_heads.start,
            intermediate_size=config.intermediate_size // self.n_ranks,
        )

    def part(self, size: int) -> slice:
        """Return this rank's part of ``size`` rows or columns, which its number divides."""
        n = size // self.n_ranks
        return slice(self.rank * n, (self.rank + 1) * n)

    def n_vocab_rows(self, vocab_size: int) -> int:
        """Return how many rows of the head each rank has, of which the last ones' may be padding:
        what ranks gather is of one size."""
        return -(-vocab_size // self.n_ranks)

    def vocab_rows(self, vocab_size: int) -> slice:
        """Return which tokens' rows of the head this rank has, padding left out."""
        n = self.n_vocab_rows(vocab_size)
        return slice(min(self.rank * n, vocab_size), min((self.rank + 1) * n, vocab_size))

    def kv_heads(self, n_kv_heads: int) -> slice:
        """Return the K/V heads that this rank's query heads attend to."""
        start = self.rank * n_kv_heads // self.n_ranks
        return slice(start, start + max(1, n_kv_heads // self.n_ranks))


WHOLE: Final = Shard()
