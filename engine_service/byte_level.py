"""Token ids to text where a tokenizer's tokens are bytes: a table says of each id what it stands
for, so that a token costs a look-up and not a decode of what came before it.

The text is what ``tokenizers`` gives for the whole: its ``ByteLevel`` decoder joins the bytes of
all tokens and reads them as UTF-8, with U+FFFD for what is none.
"""

from codecs import getincrementaldecoder
from collections.abc import Collection
from typing import Any, Final

_Utf8: Final = getincrementaldecoder("utf-8")


def byte_alphabet() -> dict[str, int]:
    """Return which byte each character of a byte-level vocabulary stands for.

    As in GPT-2 (https://github.com/openai/gpt-2, ``bytes_to_unicode``): printable characters of
    Latin-1 stand for themselves, the other bytes for the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTES: Final = byte_alphabet()


class TokenTexts(dict[int, str | bytes]):
    """What each id stands for: text, or bytes where they are not whole characters. Filled as ids
    come; one for all generations of a model. Special ids and those that name no token are empty."""

    def __init__(self, tokenizer: Any, *, special_ids: Collection[int]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._special_ids = special_ids

    @classmethod
    def of(cls, tokenizer: Any, *, special_ids: Collection[int]) -> "TokenTexts | None":
        """Return the table of a ``tokenizers.Tokenizer``; None where its tokens are not bytes."""
        if type(tokenizer.decoder).__name__ != "ByteLevel":
            return None
        return cls(tokenizer, special_ids=special_ids)

    def __missing__(self, token_id: int) -> str | bytes:
        found = self[token_id] = self._look_up(token_id)
        return found

    def _look_up(self, token_id: int) -> str | bytes:
        token = None if token_id in self._special_ids else self._tokenizer.id_to_token(token_id)
        if not token:
            return ""
        try:
            data = bytes(_BYTES[char] for char in token)
        except KeyError:  # an added token, which is text as it stands
            return str(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data


class ByteLevelDecoder:
    """Text of a growing list of ids; the pieces joined equal one decode of the whole. The beginning
    of a character is held back until the rest has come."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._utf8 = _Utf8("replace")
        self._is_within = False  # a character whose first bytes have come

    def push(self, token_id: int) -> str:
        """Return the text that this id makes certain."""
        text = self._texts[token_id]
        if isinstance(text, str):
            if not self._is_within:
                return text
            text = text.encode()
        piece = self._utf8.decode(text)
        self._is_within = bool(self._utf8.getstate()[0])
        return piece

    def flush(self) -> str:
        """Return what was held back: the answer ended inside a character."""
        self._is_within = False
        return self._utf8.decode(b"", final=True)
