"""What constrained decoding gives to sampling: which tokens may come next."""

from typing import Protocol


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

    def allowed(self) -> bytes | bytearray | memoryview:
        """Return the mask over the next token, ``n_mask_bytes`` long.

        Token ``i`` is bit ``i % 8`` of byte ``i // 8``; 1 allows it. Bits past the vocabulary are
        ignored. The bytes must hold still until the next ``accept``.
        """
