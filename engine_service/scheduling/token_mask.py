"""What constrained decoding gives to sampling: which tokens may come next."""

from collections.abc import Sequence
from typing import Protocol

Mask = bytes | bytearray | memoryview


def n_mask_bytes(vocab_size: int) -> int:
    """Bytes of a mask: one bit a token, in whole 32-bit words."""
    return -(-vocab_size // 32) * 4


class TokenMask(Protocol):
    """Follows one sequence; the step thread alone calls it, once for each generated token, however
    often the sequence is preempted. What it raises fails its own request.

    param: the client's field that asked for it, named when nothing is allowed.
    """

    param: str

    def accept(self, token_id: int) -> None:
        """Take note of the next generated token."""

    def fork(self) -> "TokenMask":
        """Return one that follows another answer to the same prompt; called before any token."""

    def allowed(self, behind: Sequence[int] = ()) -> Mask:
        """Return the mask over the next token; over the one behind ``behind``, were those next.

        It is ``n_mask_bytes`` long; token ``i`` is bit ``i % 8`` of byte ``i // 8``, 1 allows it.
        Bits past the vocabulary are ignored. The bytes must hold still until the next ``accept``.
        Raises where ``behind`` is not allowed itself.
        """

    def forced(self) -> Sequence[int]:
        """Return tokens that spell what must come next in the way in which the tokenizer would;
        none where there is a choice. Others may spell the same: these are only likely."""

    def n_allowed(self, token_ids: Sequence[int]) -> int:
        """Return how many of ``token_ids`` may come next, one after the other: as many as the
        masks behind each other allow, at a fraction of their cost."""
