"""Characters that some take for the end of a line do not end one, and stay what they are."""

import json

import httpx
import msgspec
import pytest

from apps.core.json_lines import one_line
from apps.gateway.rest.streaming import event

ALL = "".join(chr(code) for code in (*range(0xD800), *range(0xE000, 0x11000), 0x1F600))


def test_nothing_ends_a_line_and_nothing_else_changes() -> None:
    assert len(ALL.splitlines()) > 8, "else this test shows nothing"
    encoded = msgspec.json.encode(ALL)
    found = one_line(encoded)
    assert found.decode().splitlines() == [found.decode()]
    assert json.loads(found) == ALL
    assert len(found) == len(encoded) + (6 - 2) + 2 * (6 - 3)


@pytest.mark.parametrize(
    "text", ["a\u2028b", "a\u2029b", "a\u0085b", ALL], ids=["line", "paragraph", "next line", "all"]
)
def test_a_client_that_cuts_lines_as_python_does_reads_events_whole(text: str) -> None:
    answer = httpx.Response(200, content=event({"content": text}))
    (line,) = [line for line in answer.iter_lines() if line]
    assert json.loads(line.removeprefix("data: ")) == {"content": text}
