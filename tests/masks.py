"""A mask over tokens, as a grammar gives one, that allows what a test lists."""

from collections.abc import Callable, Collection, Sequence

from engine_service.scheduling.token_mask import n_mask_bytes


class ListedMask:
    """Allows behind so many tokens of the answer what ``allowed_after`` says of that number.

    seen: what it was told. forks: those of the other answers.
    """

    param = "response_format"

    def __init__(self, allowed_after: Callable[[int], Collection[int]], *, vocab_size: int) -> None:
        self._allowed_after = allowed_after
        self._vocab_size = vocab_size
        self.seen: list[int] = []
        self.forks: list[ListedMask] = []

    def accept(self, token_id: int) -> None:
        self.seen.append(token_id)

    def fork(self) -> "ListedMask":
        self.forks.append(ListedMask(self._allowed_after, vocab_size=self._vocab_size))
        return self.forks[-1]

    def allowed(self, behind: Sequence[int] = ()) -> bytes:
        words = bytearray(n_mask_bytes(self._vocab_size))
        for token_id in self._allowed_after(len(self.seen) + len(behind)):
            words[token_id // 8] |= 1 << token_id % 8
        return bytes(words)

    def forced(self) -> list[int]:
        allowed = list(self._allowed_after(len(self.seen)))
        return allowed if len(allowed) == 1 else []

    def n_allowed(self, token_ids: Sequence[int]) -> int:
        n_seen = len(self.seen)
        for i, token_id in enumerate(token_ids):
            if token_id not in self._allowed_after(n_seen + i):
                return i
        return len(token_ids)
