"""The same seed gives the same answer: alone, again, and among requests of every other kind."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.e2e.clients.asking import Asker
from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

ASK: Final = "Tell me a story about the sea."
SCHEMA: Final = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL: Final = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
KINDS: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "greedy": {"temperature": 0},
    "filtered": {"top_p": 0.9, "top_k": 40, "min_p": 0.01},
    "penalties": {"frequency_penalty": 0.5, "presence_penalty": 0.5, "repetition_penalty": 1.1},
    "three": {"n": 3},
    "schema": {"response_format": {"type": "json_object"}},
    "tool": {"tools": [TOOL], "tool_choice": "required"},
    "logprobs": {"logprobs": True, "top_logprobs": 5},
    "stop": {"stop": [" the", ","]},
    "bias": {"logit_bias": {"30": -100, "28": 5}},
}


def answer(asker: Asker, kind: str) -> list[Any]:
    given = {"temperature": 1.1, "seed": 7, "max_tokens": 16, **KINDS[kind]}
    return [
        (
            choice.message.content,
            [(call.id and call.function.name, call.function.arguments) for call in calls]
            if (calls := choice.message.tool_calls)
            else None,
            choice.finish_reason,
        )
        for choice in asker.chat(ASK, **given).choices
    ]


@contextmanager
def company(asker: Asker) -> Iterator[None]:
    """Long answers without a seed and new prompts of hundreds of tokens, until the block ends."""
    stop, failures = threading.Event(), []

    def talk(number: int) -> None:
        try:
            n_asked = 0
            while not stop.is_set():
                n_asked += 1
                prompt = f"{number} {n_asked}: " + "The boat went on and on. " * 40
                asker.chunks(prompt, temperature=1.5, max_tokens=30, ignore_eos=True)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60)
    assert failures == []


def test_a_seed_alone_and_in_company(asker: Asker, product: RunningProduct) -> None:
    alone = {kind: answer(asker, kind) for kind in KINDS}
    assert {kind: answer(asker, kind) for kind in KINDS} == alone
    assert alone["plain"] != alone["greedy"]
    with company(asker), ThreadPoolExecutor(len(KINDS)) as pool:
        for _ in range(2):
            together = pool.map(lambda kind: answer(asker, kind), KINDS)
            assert dict(zip(KINDS, together, strict=True)) == alone
    fingerprint = asker.chat("Hi").system_fingerprint
    print(f"{len(KINDS)} kinds of seeded requests, twice alone and twice in company: {fingerprint}")
    assert "reference" not in (fingerprint or "")
