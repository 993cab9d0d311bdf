"""Guesses for an answer that is held to a grammar.

Where only one text can come next, as between the values of a JSON object, its tokens are drafted:
a step checks them like any other guess, because the model may prefer to spell it otherwise. (Jump
forward decoding, https://lmsys.org/blog/2024-02-05-compressed-fsm, takes them unchecked.)
"""

import contextlib
from collections.abc import Sequence as SequenceOf

from engine_service.scheduling.drafting import Proposer
from engine_service.scheduling.sampling_state import SamplingState
from engine_service.scheduling.token_mask import TokenMask


class ForcedTokens:
    """What a mask leaves no choice about."""

    def __init__(self, mask: TokenMask, *, state: SamplingState) -> None:
        self._mask = mask
        self._state = state

    def propose(self, token_ids: SequenceOf[int], *, max_tokens: int) -> SequenceOf[int]:
        # What is wrong with a mask, sampling finds too, and fails its request.
        with contextlib.suppress(Exception):
            self._state.catch_up(token_ids)
            return self._mask.forced()[:max_tokens]
        return ()


class AllowedTokens:
    """What another proposes, as far as a mask allows it."""

    def __init__(self, proposer: Proposer, mask: TokenMask, *, state: SamplingState) -> None:
        self._proposer = proposer
        self._mask = mask
        self._state = state

    def propose(self, token_ids: SequenceOf[int], *, max_tokens: int) -> SequenceOf[int]:
        proposed = self._proposer.propose(token_ids, max_tokens=max_tokens)
        with contextlib.suppress(Exception):
            self._state.catch_up(token_ids)
            return proposed[: self._mask.n_allowed(proposed)]
        return ()


def proposers(proposer: Proposer, *, state: SamplingState | None) -> tuple[Proposer, ...]:
    """Return whom to ask for guesses, one after the other until one has some."""
    if state is None or state.mask is None:
        return (proposer,)
    return (
        ForcedTokens(state.mask, state=state),
        AllowedTokens(proposer, state.mask, state=state),
    )
