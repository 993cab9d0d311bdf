"""What only the completions endpoint says: echoed prompts, and logprobs in the older form."""

from collections.abc import Sequence

from apps.engines.types import TokenLogprob
from apps.gateway.rest.wire import TextLogprobs, finite


class TextLogprobsWriter:
    """Words the logprobs of one answer, piece by piece, counting characters as they come. A part
    of a character is named by its bytes, or parts would be taken for each other."""

    def __init__(self) -> None:
        self._n_begun = 0

    def write(self, entries: Sequence[TokenLogprob]) -> TextLogprobs | None:
        """Return what is said of the next tokens; None where nothing was asked."""
        if not entries:
            return None
        return self._write([each.token for each in entries], entries)

    def write_prompt(self, prompt: str, entries: Sequence[TokenLogprob]) -> TextLogprobs:
        """Return what is said of an echoed prompt: the model says nothing of its first token."""
        rest = b"".join(each.token for each in entries)
        whole = prompt.encode()
        first = whole[: len(whole) - len(rest)] if whole.endswith(rest) else b""
        return self._write([first, *(each.token for each in entries)], [None, *entries])

    def _write(
        self, tokens: Sequence[bytes], entries: Sequence[TokenLogprob | None]
    ) -> TextLogprobs:
        return TextLogprobs(
            tokens=tuple(name_of(token) for token in tokens),
            token_logprobs=tuple(
                None if each is None else finite(each.logprob) for each in entries
            ),
            top_logprobs=tuple(
                None
                if each is None
                else {name_of(token): finite(value) for token, value in each.top}
                for each in entries
            ),
            text_offset=tuple(map(self._offset, tokens)),
        )

    def _offset(self, token: bytes) -> int:
        """Return which character of the text a token begins in, and count those it begins."""
        begins_within = _is_continued(token[:1])
        offset = self._n_begun - begins_within
        self._n_begun += sum(not _is_continued(token[at : at + 1]) for at in range(len(token)))
        return offset


def name_of(token: bytes) -> str:
    """Return a token as text; of a part of a character its bytes, such as ``bytes:\\xf0\\x9f``."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _is_continued(byte: bytes) -> bool:
    """Return whether a byte of UTF-8 goes on with a character that another began."""
    return b"\x80" <= byte <= b"\xbf"


def joined(first: TextLogprobs | None, second: TextLogprobs | None) -> TextLogprobs | None:
    """Return both, one after the other."""
    if first is None or second is None:
        return first or second
    return TextLogprobs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=first.top_logprobs + second.top_logprobs,
        text_offset=first.text_offset + second.text_offset,
    )
