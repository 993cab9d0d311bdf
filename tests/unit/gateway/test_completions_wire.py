"""Logprobs in the older form: where tokens are in the text, what parts of characters are called."""

from apps.engines.types import TokenLogprob
from apps.gateway.rest.completions_wire import TextLogprobsWriter


def entry(token: bytes, *top: bytes) -> TokenLogprob:
    return TokenLogprob(
        token_id=0, token=token, logprob=-1.0, top=tuple((each, -2.0) for each in top)
    )


def test_offsets_count_characters_and_parts_are_named_by_their_bytes() -> None:
    family = "👩".encode()
    writer = TextLogprobsWriter()
    first = writer.write([entry("né".encode()), entry(family[:2]), entry(family[2:3])])
    second = writer.write([entry(family[3:] + b"a"), entry(b"b")])
    assert first is not None and second is not None
    assert first.tokens == ("né", "bytes:\\xf0\\x9f", "bytes:\\x91")
    assert second.tokens == ("bytes:\\xa9\\x61", "b")
    assert (*first.text_offset, *second.text_offset) == (0, 2, 2, 2, 4)


def test_parts_of_different_characters_are_not_one() -> None:
    told = TextLogprobsWriter().write([entry(b"a", b"\xf0\x9f", b"\xe2\x80", b"x")])
    assert told is not None and told.top_logprobs[0] is not None
    assert list(told.top_logprobs[0]) == ["bytes:\\xf0\\x9f", "bytes:\\xe2\\x80", "x"]
