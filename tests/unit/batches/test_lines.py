"""Input files of batches: what is a request, and what is said of what is none."""

import io
import json
from typing import Any

import pytest

from apps.batches.lines import MAX_ERRORS, ParsedFile, body_of, parse_file

ENDPOINT = "/v1/chat/completions"


def line(custom_id: object = "a", **fields: Any) -> bytes:
    request = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": {"model": "m"}}
    return json.dumps(request | fields).encode()


def parsed(*lines: bytes, max_lines: int = 100, max_line_bytes: int = 1000) -> ParsedFile:
    return parse_file(
        io.BytesIO(b"\n".join(lines)),
        endpoint=ENDPOINT,
        max_lines=max_lines,
        max_line_bytes=max_line_bytes,
    )


def test_each_line_is_found_again_by_its_place() -> None:
    texts = (line("a"), b"", line("b", body={"n": "é"}), b"  ", line("c") + b"\r", b"")
    whole = b"\n".join(texts)
    found = parsed(*texts)
    assert found.errors == ()
    assert [(each.number, each.custom_id) for each in found.lines] == [(1, "a"), (3, "b"), (5, "c")]
    bodies = [body_of(whole[each.offset : each.offset + each.n_bytes]) for each in found.lines]
    assert [json.loads(body) for body in bodies] == [{"model": "m"}, {"n": "é"}, {"model": "m"}]


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b'{"body":' + b"[" * 900, "invalid_json_line", None),
        (b"[1]", "invalid_request", None),
        (line(extra=1), "invalid_request", None),
        (line(None), "invalid_custom_id", "custom_id"),
        (line(7), "invalid_custom_id", "custom_id"),
        (line(""), "invalid_custom_id", "custom_id"),
        (line("x" * 257), "invalid_custom_id", "custom_id"),
        (line("a\x00"), "invalid_custom_id", "custom_id"),
        (line("first"), "duplicate_custom_id", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/completions"), "invalid_url", "url"),
        (line(body=[]), "invalid_body", "body"),
        (line(body=None), "invalid_body", "body"),
        (
            b'{"custom_id":"a","method":"POST","url":"%s"}' % ENDPOINT.encode(),
            "invalid_body",
            "body",
        ),
        (line("x", body={"pad": "x" * 1000}), "line_too_long", None),
    ],
)
def test_a_wrong_line_is_named(bad: bytes, code: str, param: str | None) -> None:
    found = parsed(line("first"), bad, line("last"))
    assert found.lines == ()
    assert [(each.line, each.code, each.param) for each in found.errors] == [(2, code, param)]


def test_all_wrong_lines_are_named_up_to_a_bound() -> None:
    found = parsed(*[b"{"] * (MAX_ERRORS + 10))
    assert [each.line for each in found.errors] == list(range(1, MAX_ERRORS + 1))


@pytest.mark.parametrize("lines", [(), (b"",), (b" ", b"\r")])
def test_a_file_without_a_request_is_refused(lines: tuple[bytes, ...]) -> None:
    found = parsed(*lines)
    assert found.lines == ()
    assert [(each.line, each.code) for each in found.errors] == [(None, "empty_file")]


def test_as_many_requests_as_allowed_and_no_more() -> None:
    texts = [line(str(n)) for n in range(3)]
    assert len(parsed(*texts, b"", max_lines=3).lines) == 3
    found = parsed(*texts, max_lines=2)
    assert [(each.line, each.code) for each in found.errors] == [(3, "too_many_requests")]


def test_a_line_as_long_as_allowed_is_read_whole() -> None:
    text = line("a")
    assert len(parsed(text, line("b"), max_line_bytes=len(text)).lines) == 2
    [error] = parsed(text, line("b"), max_line_bytes=len(text) - 1).errors
    assert (error.line, error.code) == (1, "line_too_long")
