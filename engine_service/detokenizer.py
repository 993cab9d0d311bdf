"""Token ids to text, a few at a time: whole characters only, and never a piece of a stop string.

Knows nothing of requests or sockets; one object serves one generation.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from engine_service.byte_level import ByteLevelDecoder, TokenTexts

REPLACEMENT: Final = "\ufffd"
# Decoding forgets the oldest ids once more than this many are in the window, so that the cost of
# a token does not grow with the length of the answer.
WINDOW_TOKENS: Final = 8
# More ids than this without one whole character are bytes that will never make one.
MAX_PENDING_TOKENS: Final = 24


class Decoder(Protocol):
    """What is needed of a tokenizer (``tokenizers.Tokenizer`` has it)."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class IncrementalDecoder:
    """Text of a growing list of ids; the pieces joined equal one decode of the whole.

    Ids that end inside a character decode to U+FFFD: one with byte-level tokenizers, one for each
    byte with byte fallback. Later ids may turn them into the character, so they are held back.
    """

    def __init__(self, decoder: Decoder, *, special_ids: Collection[int]) -> None:
        self._decoder = decoder
        self._special_ids = special_ids
        self._window: list[int] = []
        self._n_emitted_chars = 0  # of the window's text

    def push(self, token_id: int) -> str:
        """Return the text that this id makes certain."""
        # Special ids have no text. Left in the window they could be all of its context, and some
        # decoders treat the first id that they show unlike the others.
        if token_id in self._special_ids:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        n_certain = len(text.rstrip(REPLACEMENT))
        piece = text[self._n_emitted_chars : n_certain]
        self._n_emitted_chars = max(self._n_emitted_chars, n_certain)
        limit = WINDOW_TOKENS if n_certain == len(text) else MAX_PENDING_TOKENS
        if len(self._window) > limit:
            piece += self._shrink(text)
        return piece

    def flush(self) -> str:
        """Return what was held back: the answer ended inside a character."""
        text = self._decode(self._window)
        piece = text[self._n_emitted_chars :]
        self._n_emitted_chars = len(text)
        return piece

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._decoder.decode(token_ids, skip_special_tokens=True)

    def _shrink(self, text: str) -> str:
        """Forget the ids before a boundary between characters; return their text not yet emitted.

        Where the two sides decode to the text of the whole, no character spans the boundary: each
        half of one would show as U+FFFD. Some decoders drop a space before the first id.
        """
        for n_kept in range(1, WINDOW_TOKENS):
            head = self._decode(self._window[:-n_kept])
            tail = self._decode(self._window[-n_kept:])
            if tail and text in (head + tail, f"{head} {tail}"):
                n_forgotten = len(text) - len(tail)
                piece = text[self._n_emitted_chars : n_forgotten]
                self._n_emitted_chars = max(self._n_emitted_chars - n_forgotten, 0)
                self._window = self._window[-n_kept:]
                return piece
        return ""


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text that may be shown; ``stop``: the stop string that was completed after it."""

    text: str
    stop: str | None = None


class StopStrings:
    """Cuts text before a stop string, however it is split over pieces.

    The stop string that is completed first wins; of several completed by the same character, the
    one that began first. That does not depend on how the text was split.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def push(self, text: str) -> TextPiece:
        """Return the text that can no longer become part of a stop string."""
        if not self._stop:
            return TextPiece(text)
        text = self._held + text
        ends = [
            (start + len(stop), start)
            for stop in self._stop
            if (start := text.find(stop)) >= 0  # the first occurrence also ends first
        ]
        if ends:
            self._held = ""
            end, start = min(ends)
            return TextPiece(text[:start], stop=text[start:end])
        cut = min((partial_start(text, stop) for stop in self._stop), default=len(text))
        self._held = text[cut:]
        return TextPiece(text[:cut])

    def flush(self) -> str:
        """Return what was held back; no more text will come."""
        text, self._held = self._held, ""
        return text


def partial_start(text: str, stop: str) -> int:
    """Return where the longest end of ``text`` begins that is a proper beginning of ``stop``."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return start
        start += 1
    return len(text)


class Detokenizer:
    """The text of one generation: whole characters, stop strings taken out, end tokens unseen.

    texts: what ids stand for, where a table can say it. min_tokens: the text of so many is not
    searched for stop strings. stop: the one that ended it.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        special_ids: Collection[int],
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        texts: TokenTexts | None = None,
    ) -> None:
        self._min_tokens = min_tokens
        self._ids: ByteLevelDecoder | IncrementalDecoder
        if texts is None:
            self._ids = IncrementalDecoder(decoder, special_ids=special_ids)
        else:
            self._ids = ByteLevelDecoder(texts)
        self._strings = StopStrings(stop) if stop else None
        self.n_tokens = 0
        self.stop: str | None = None

    @property
    def stopped(self) -> bool:
        return self.stop is not None

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text to show. Ids after a completed stop string are not counted."""
        text = ""
        if self._strings is None:
            for token_id in token_ids:
                text += self._ids.push(token_id)
            self.n_tokens += len(token_ids)
            return text
        for token_id in token_ids:
            if self.stopped:
                break
            self.n_tokens += 1
            if self.n_tokens <= self._min_tokens:
                text += self._ids.push(token_id)
                continue
            piece = self._strings.push(self._ids.push(token_id))
            self.stop = piece.stop
            text += piece.text
        return text

    def finish(self) -> str:
        """Return the text that was held back; call it once, after the last ids."""
        if self.stopped:
            return ""
        if self._strings is None:
            return self._ids.flush()
        piece = self._strings.push(self._ids.flush())
        self.stop = piece.stop
        return piece.text + self._strings.flush()
