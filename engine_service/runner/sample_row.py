"""What a draw of one token needs to know beside the logits."""

import hashlib
import struct
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Final, Literal

from engine_service.protocol import SamplingParams
from engine_service.scheduling.sampling_state import SamplingState

# Below this, the best token has all of the probability that float32 can tell from 1.
_GREEDY_BELOW_TEMPERATURE: Final = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """One draw.

    n_generated: tokens that the sequence has produced before this one, drafted ones counted. state:
    None where the parameters need none; token_ids: prompt and answer so far, for the state to catch
    up with. draft: what a step guesses behind them, of which ``n_ahead`` come before this draw.
    """

    params: SamplingParams
    seed: int
    n_generated: int
    state: SamplingState | None = None
    token_ids: SequenceOf[int] = ()
    draft: tuple[int, ...] = ()
    n_ahead: int = 0

    @property
    def is_greedy(self) -> bool:
        return self.params.temperature < _GREEDY_BELOW_TEMPERATURE

    @property
    def filter(self) -> Literal["none", "min_p", "sorted"]:
        """What is left out of the draw, by what it costs to find."""
        if self.params.top_k > 0 or self.params.top_p < 1.0:
            return "sorted"
        return "min_p" if self.params.min_p > 0.0 else "none"

    @property
    def uniform(self) -> float:
        return uniform(self.seed, position=self.n_generated)


def uniform(seed: int, *, position: int) -> float:
    """Return a number in [0, 1), always the same for a seed and a position."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 16) / 2.0**48
