"""What only the completions endpoint says: echoed prompts, and logprobs in the older form."""

from collections.abc import Sequence

from apps.engines.types import TokenLogprob
from apps.gateway.rest.wire import TextLogprobs, finite, text_of


class TextLogprobsWriter:
    """Words the logprobs of one answer, piece by piece, counting characters as they come."""

    def __init__(self) -> None:
        self._n_chars = 0

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
        texts = [text_of(token) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._n_chars)
            self._n_chars += len(text)
        return TextLogprobs(
            tokens=tuple(texts),
            token_logprobs=tuple(
                None if each is None else finite(each.logprob) for each in entries
            ),
            top_logprobs=tuple(
                None
                if each is None
                else {text_of(token): finite(value) for token, value in each.top}
                for each in entries
            ),
            text_offset=tuple(offsets),
        )


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
