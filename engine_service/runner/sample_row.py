"""What a draw of one token needs to know beside the logits."""

import hashlib
import struct
from collections.abc import Sequence as SequenceOf
from typing import Final, Literal

from msgspec import Struct

from engine_service.protocol import SamplingParams
from engine_service.scheduling.sampling_state import SamplingState

Filter = Literal["none", "min_p", "sorted"]

# Below this, the best token has all of the probability that float32 can tell from 1.
_GREEDY_BELOW_TEMPERATURE: Final = 1e-5


class SampleRow(Struct, frozen=True, kw_only=True):
    """One draw.

    n_generated: tokens that the sequence has produced before this one, drafted ones counted. state:
    None where the parameters need none; token_ids: prompt and answer so far, for the state to catch
    up with. draft: what a step guesses behind them, of which ``n_ahead`` come before this draw.
    is_again: this draw is the one after a token that the mask refused.
    """

    params: SamplingParams
    seed: int
    n_generated: int
    state: SamplingState | None = None
    token_ids: SequenceOf[int] = ()
    draft: tuple[int, ...] = ()
    n_ahead: int = 0
    is_again: bool = False

    @property
    def drafted(self) -> int | None:
        """What the step guesses of this draw; None behind the last guess."""
        return self.draft[self.n_ahead] if self.n_ahead < len(self.draft) else None

    @property
    def is_greedy(self) -> bool:
        return _is_greedy(self.params)

    @property
    def filter(self) -> Filter:
        return _filter(self.params)

    @property
    def uniform(self) -> float:
        return uniform(self.seed, position=self.n_generated, is_again=self.is_again)


def is_drawn(params: SamplingParams) -> bool:
    """Return whether chance has a part in the choice."""
    return not _is_greedy(params)


def mask_comes_first(params: SamplingParams) -> bool:
    """Return whether a draw must know its mask: where it leaves out by rank or by share, what that
    is depends on what is allowed. Any other draw is checked when it is made (``redrawing``)."""
    return _filter(params) != "none" and not _is_greedy(params)


def _is_greedy(params: SamplingParams) -> bool:
    return params.temperature < _GREEDY_BELOW_TEMPERATURE


def _filter(params: SamplingParams) -> Filter:
    """Return what is left out of a draw, by what it costs to find."""
    if params.top_k > 0 or params.top_p < 1.0:
        return "sorted"
    return "min_p" if params.min_p > 0.0 else "none"


def uniform(seed: int, *, position: int, is_again: bool = False) -> float:
    """Return a number in [0, 1), always the same for a seed and a position; another one again."""
    digest = hashlib.blake2b(
        struct.pack("<qq", seed, position), digest_size=8, salt=bytes([is_again])
    ).digest()
    return float(int.from_bytes(digest, "little") >> 16) / 2.0**48
