"""Clients that chat with a product for as long as a test wants, from threads of their own."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.serve import RunningProduct

TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """version_id: of the model version that the answer says it is from."""

    request_id: str
    version_id: int


@dataclass(slots=True)
class Work:
    """What the clients of one block had: each answer that was whole, and what went wrong."""

    answers: list[Answer] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def fingerprint_version(fingerprint: str) -> int:
    return int(fingerprint.split("_")[1])


@contextmanager
def streaming(product: RunningProduct, *, user: str, n: int, max_tokens: int) -> Iterator[Work]:
    """Have ``n`` clients stream one chat after another until the block ends; each then finishes the
    one that it has."""
    work, enough = Work(), threading.Event()

    def run(number: int) -> None:
        with httpx.Client(timeout=TIMEOUT_S) as http:
            count = 0
            while not enough.is_set():
                count += 1
                try:
                    text = f"Client {number} asks for story {count}."
                    work.answers.append(
                        _streamed(http, product, text=text, user=user, max_tokens=max_tokens)
                    )
                except Exception as error:  # of whatever kind: the test looks at it
                    work.faults.append(repr(error))
                    return

    threads = [threading.Thread(target=run, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    try:
        yield work
    finally:
        enough.set()
        for thread in threads:
            thread.join(TIMEOUT_S)


def _streamed(
    http: httpx.Client, product: RunningProduct, *, text: str, user: str, max_tokens: int
) -> Answer:
    """Read one answer to its end; raises AssertionError of one that is not whole."""
    body = {
        "model": product.model, "messages": [{"role": "user", "content": text}], "stream": True,
        "max_tokens": max_tokens, "user": user,
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {product.api_token}"}
    url = f"{product.base_url}/chat/completions"
    with http.stream("POST", url, json=body, headers=headers) as response:
        lines = [line for line in response.iter_lines() if line and line[0] != ":"]
    assert response.status_code == 200, lines
    events = [line.removeprefix("data: ") for line in lines]
    assert events[-1] == "[DONE]", events
    pieces = [json.loads(event) for event in events[:-1]]
    assert all("error" not in piece for piece in pieces), pieces
    finished = [piece for piece in pieces if piece["choices"][0]["finish_reason"]]
    assert len(finished) == 1, pieces
    return Answer(
        request_id=pieces[0]["id"],
        version_id=fingerprint_version(pieces[0]["system_fingerprint"]),
    )
