"""JSON that stays on one line for whoever reads lines."""

from typing import Final

# Ends of lines to ``str.splitlines``, by which common clients cut a stream into lines, and not to
# JSON, in whose strings alone they can stand. UTF-8 has these bytes nowhere else.
_LINE_ENDS: Final = (
    (b"\xc2\x85", rb"\u0085"),
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
)


def one_line(encoded: bytes) -> bytes:
    """Return JSON that says the same, with each of those characters escaped."""
    for raw, escaped in _LINE_ENDS:
        encoded = encoded.replace(raw, escaped)
    return encoded
