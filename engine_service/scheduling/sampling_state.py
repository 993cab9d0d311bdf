"""What sampling remembers of a sequence from token to token; most sequences need none of it."""

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

from engine_service.protocol import SamplingParams
from engine_service.scheduling.token_mask import TokenMask


class SamplingState:
    """Kept up to date by ``catch_up``, at a cost of the tokens that are new.

    ids: distinct tokens that the penalties look at; counts: how often each was generated, 0 for one
    that only the prompt has. bias_ids, bias: the client's. end_ids: what must not come before
    ``min_tokens``.
    """

    __slots__ = ("_n_seen", "_places", "bias", "bias_ids", "counts", "end_ids", "ids", "mask")

    def __init__(
        self,
        sampling: SamplingParams,
        *,
        prompt_token_ids: SequenceOf[int],
        eos_token_ids: Iterable[int] = (),
        mask: TokenMask | None = None,
    ) -> None:
        self.bias_ids = array("q", [token_id for token_id, _ in sampling.logit_bias])
        self.bias = array("f", [bias for _, bias in sampling.logit_bias])
        ends = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            ends.update(eos_token_ids)
        self.end_ids = array("q", sorted(ends) if sampling.min_tokens else ())
        self.mask = mask
        self._n_seen = len(prompt_token_ids)
        self._places: dict[int, int] | None = None
        self.ids = array("q")
        self.counts = array("f")
        if is_penalized(sampling):
            # Only repetition counts what the prompt says.
            known = set(prompt_token_ids) if sampling.repetition_penalty != 1.0 else ()
            self.ids.extend(known)
            self.counts.extend([0.0] * len(self.ids))
            self._places = {token_id: place for place, token_id in enumerate(self.ids)}

    @classmethod
    def of(
        cls,
        sampling: SamplingParams,
        *,
        prompt_token_ids: SequenceOf[int],
        eos_token_ids: Iterable[int] = (),
        mask: TokenMask | None = None,
    ) -> "SamplingState | None":
        """Return the state of a new sequence; None where its parameters need none."""
        if mask is None and not (
            is_penalized(sampling) or sampling.logit_bias or sampling.min_tokens
        ):
            return None
        return cls(
            sampling, prompt_token_ids=prompt_token_ids, eos_token_ids=eos_token_ids, mask=mask
        )

    @property
    def counts_tokens(self) -> bool:
        """True where what it says of a token depends on how often others came before it."""
        return self._places is not None

    def catch_up(self, token_ids: SequenceOf[int]) -> None:
        """Take note of what was generated since the last call; ``token_ids`` are all so far."""
        while self._n_seen < len(token_ids):
            token_id = token_ids[self._n_seen]
            if self.mask is not None:
                self.mask.accept(token_id)  # what it refuses, it is asked again, and refuses again
            if self._places is not None:
                self._count(token_id, places=self._places)
            self._n_seen += 1

    def _count(self, token_id: int, *, places: dict[int, int]) -> None:
        place = places.setdefault(token_id, len(places))
        if place == len(self.ids):
            self.ids.append(token_id)
            self.counts.append(0.0)
        self.counts[place] += 1.0


def is_penalized(sampling: SamplingParams) -> bool:
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )
