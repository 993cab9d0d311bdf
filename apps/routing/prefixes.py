"""Which replicas have lately read prompts that begin alike. A guess from what was sent where:
engines are not asked, and keep their own account of what they still hold."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PIECE_CHARS: Final = 256
PIECE_TOKENS: Final = 64
MAX_PIECES: Final = 256  # of one prompt; what comes after them does not matter
MAX_PREFIX_CHARS: Final = MAX_PIECES * PIECE_CHARS
MAX_KEPT_PIECES: Final = 65_536  # of all prompts together
MAX_HOLDERS: Final = 8  # that are remembered of one piece

Holder = tuple[str, int]  # the name and the epoch of an engine: a new start has read nothing


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a prompt begins with: a chain of hashes, each of one whole piece and all before it.

    n_pieces: of the whole prompt, the rest after its last whole piece included.
    """

    chain: tuple[int, ...] = ()
    n_pieces: float = 1.0

    def share(self, n_matched: int) -> float:
        """Return what part of the prompt its first ``n_matched`` pieces are."""
        return min(1.0, n_matched / self.n_pieces)


NO_PREFIX: Final = Prefix()


def prompt_prefix(prompt: str | Sequence[int], *, salt: str, length: int | None = None) -> Prefix:
    """Return the prefix of a prompt that is text or token ids.

    salt: the tenant's, so that nobody's prompts are found by another's. length: that of the whole
    prompt, where only its beginning is given.
    """
    length = len(prompt) if length is None else length
    if isinstance(prompt, str):
        size = PIECE_CHARS
    else:
        size, prompt = PIECE_TOKENS, tuple(prompt[: MAX_PIECES * PIECE_TOKENS])
    # Python hashes text under a key of the process, which these hashes never leave. One that meets
    # another's costs a request its best place, and nothing else.
    last = hash((salt, size))
    chain = []
    for start in range(0, min(len(prompt) - size + 1, MAX_PIECES * size), size):
        last = hash((last, prompt[start : start + size]))
        chain.append(last)
    return Prefix(chain=tuple(chain), n_pieces=max(length / size, 1.0))


class PrefixIndex:
    """Pieces of prompts and who has read them; the least recently used goes first."""

    def __init__(self, *, max_pieces: int = MAX_KEPT_PIECES) -> None:
        self._max_pieces = max_pieces
        self._holders: OrderedDict[int, tuple[Holder, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def matches(self, prefix: Prefix) -> dict[Holder, int]:
        """Return how many pieces, from the first, each replica has read of such a prompt."""
        found: dict[Holder, int] = {}
        n_matched = 0
        reading: tuple[Holder, ...] = ()
        last: tuple[Holder, ...] | None = None
        for piece in prefix.chain:
            holders = self._holders.get(piece, ())
            if holders is not last:  # as they mostly are from piece to piece
                left = reading
                reading = tuple(h for h in left if h in holders) if n_matched else holders
                found.update((holder, n_matched) for holder in left if holder not in reading)
                if not reading:
                    break
                last = holders
            n_matched += 1
        found.update((holder, n_matched) for holder in reading)
        return found

    def add(self, prefix: Prefix, holder: Holder) -> None:
        """Note that a replica reads this prompt now."""
        last: tuple[Holder, ...] = ()
        joined: tuple[Holder, ...] = (holder,)
        # From its end: so that the end is forgotten before what others may share.
        for piece in reversed(prefix.chain):
            holders = self._holders.get(piece, ())
            if holders is not last:  # pieces with the same holders share one tuple
                is_known = holder in holders
                joined = holders if is_known else (holder, *holders[: MAX_HOLDERS - 1])
                last = holders
            self._holders[piece] = joined
            self._holders.move_to_end(piece)
        while len(self._holders) > self._max_pieces:
            self._holders.popitem(last=False)
