"""Requests made to hurt an engine: each breaks one rule, and which field must be named for it."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from apps.engines.client import (
    ChatMessage,
    ChatPrompt,
    Prompt,
    SamplingParams,
    Standing,
    TextPrompt,
    TokenPrompt,
)
from engine_service.protocol import HEADER, NO_STANDING

# Of the engine that they are sent to: the pool, and with it the context, is smaller than what the
# model could take.
CONTEXT: Final = 320
VOCAB: Final = 320
HARMLESS: Final = TokenPrompt(token_ids=(1, 2, 3))
GREEDY: Final = SamplingParams(temperature=0.0)
NAN, INF = math.nan, math.inf
INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    """param: the field that the error must name. n_start: tokens to start with; None takes what
    was prepared."""

    name: str
    param: str
    prompt: Prompt = HARMLESS
    sampling: SamplingParams = GREEDY
    max_tokens: int | None = 8
    n_start: int | None = None
    standing: Standing = NO_STANDING


def corpus() -> list[Hostile]:
    return [*_prompts(), *_limits(), *_parameters(), *_standings()]


def _prompts() -> Iterator[Hostile]:
    ids: dict[str, tuple[int, ...]] = {
        "no ids": (),
        "an id behind the vocabulary": (1, VOCAB),
        "a negative id": (-1, 2),
        "an id beyond 64 bits": (1, 2**64 - 1),
        "the least id": (-(2**63),),
        "a prompt as long as the pool": (7,) * CONTEXT,
        "a prompt of 100,000 ids": (7,) * 100_000,
    }
    for name, token_ids in ids.items():
        yield Hostile(name=name, param="prompt", prompt=TokenPrompt(token_ids=token_ids))
    for name, text in {"no text": "", "a text of 4 MB": "x" * (4 << 20)}.items():
        yield Hostile(name=name, param="prompt", prompt=TextPrompt(text=text))
    turns = {
        "no turns": (),
        "20,000 turns": (ChatMessage(role="user", content="x"),) * 20_000,
        "a turn of 4 MB": (ChatMessage(role="user", content="é" * (2 << 20)),),
    }
    for name, messages in turns.items():
        yield Hostile(name=name, param="messages", prompt=ChatPrompt(messages=messages))


def _limits() -> Iterator[Hostile]:
    for n in (0, -1, -(2**63), CONTEXT, INT64_MAX, 2**64 - 1):
        yield Hostile(name=f"max_tokens {n}", param="max_tokens", max_tokens=n)
    for n_start in (0, -5, 9, 2**64 - 1):  # 8 were prepared
        yield Hostile(name=f"starts with {n_start}", param="max_tokens", n_start=n_start)
    for least in (-1, 9, 2**64 - 1):
        yield Hostile(
            name=f"at least {least} tokens of at most 8",
            param="min_tokens",
            sampling=SamplingParams(min_tokens=least),
        )


def _parameters() -> Iterator[Hostile]:
    values: dict[str, tuple[Any, ...]] = {
        "temperature": (NAN, INF, -INF, -0.1, 2.1, 1e300),
        "top_p": (NAN, INF, -INF, 0.0, 1.0001, -1.0),
        "min_p": (NAN, INF, -INF, -0.1, 1.1),
        "presence_penalty": (NAN, INF, -INF, 2.1, -2.1),
        "frequency_penalty": (NAN, INF, -INF, 2.1, -2.1),
        "repetition_penalty": (NAN, INF, -INF, 0.0, -1.0, 101.0, 1e-300),
        "top_k": (-1, 2**63, 2**64 - 1),
        "seed": (2**63, 2**64 - 1),
        "n": (0, -1, 1000, INT64_MAX, 2**64 - 1),
        "logprobs": (-1, 21, 2**64 - 1),
        "prompt_logprobs": (-1, 21, INT64_MAX),
        "stop": (("",), ("x" * 100_000,), ("a", "b", "c", "d", "e"), ("s",) * 100_000),
        "stop_token_ids": ((-1,), (VOCAB,), (2**64 - 1,), tuple(range(65)), (1,) * 200_000),
        "logit_bias": (
            *(((5, value),) for value in (NAN, INF, -INF, 100.5)),
            ((-1, 1.0),),
            ((VOCAB, 1.0),),
            ((2**64 - 1, 1.0),),
            ((5, 1.0), (5, 2.0)),
            tuple((i % VOCAB, 1.0) for i in range(100_000)),
        ),
    }
    for param, bad in values.items():
        for value in bad:
            yield Hostile(
                name=f"{param} {str(value)[:40]}",
                param=param,
                sampling=SamplingParams(**{param: value}),
            )


def _standings() -> Iterator[Hostile]:
    values: dict[str, tuple[Any, ...]] = {
        "weight": (NAN, INF, -INF, 0.0, -1.0, 1e-300, 1e300),
        "priority": (101, -101, 2**64 - 1),
        "deadline_s": (NAN, INF, -INF, 0.0, -1.0),
        "tenant": ("t" * 1_000_000,),
    }
    for param, bad in values.items():
        for value in bad:
            yield Hostile(
                name=f"{param} {str(value)[:40]}", param=param, standing=Standing(**{param: value})
            )


def malformed_frames() -> dict[str, bytes]:
    """What is no message at all; a connection that sends it may not go on."""
    good: dict[str, Any] = {
        "type": "prepare",
        "request_id": "bad",
        "prompt": {"type": "textprompt", "text": "abc"},
        "sampling": {},
    }

    def frame(**changes: Any) -> bytes:
        return framed(msgspec.msgpack.encode({**good, **changes}))

    nested: Any = "deep"
    for _ in range(400):
        nested = [nested]
    return {
        "invalid UTF-8": frame().replace(b"abc", b"\xff\xfe\xfd"),
        "invalid UTF-8 in an id": frame().replace(b"bad", b"\xed\xa0\x80"),
        "a text for a number": frame(sampling={"temperature": "hot"}),
        "a fraction for a count": frame(sampling={"n": 1.5}),
        "null for a number": frame(sampling={"top_p": None}),
        "NaN for an id": frame(prompt={"type": "tokenprompt", "token_ids": [NAN]}),
        "an unknown field": frame(sampling={"beam_width": 4}),
        "an unknown prompt": frame(prompt={"type": "imageprompt", "data": b"\x00" * 100}),
        "lists in lists": frame(prompt=nested),
        "lists in lists for ever": framed(b"\x91" * 1_000_000),
        "eight megabytes of nothing": framed(b"\x00" * (8 << 20)),
        "a list that announces 4 billion": framed(b"\xdd\xff\xff\xff\xff"),
        "a length beyond the bound": HEADER.pack((8 << 20) + 1) + b"x",
        "bytes in place of a map": framed(b"\xc4\x03abc"),
    }


def framed(body: bytes) -> bytes:
    return HEADER.pack(len(body)) + body


# Values at and beyond the edges of what each field may be. Combined at random, most requests are
# refused and some must run.
EDGES: Final[dict[str, tuple[Any, ...]]] = {
    "temperature": (0.0, 5e-324, 1e-5, 1.0, 2.0, NAN),
    "top_p": (5e-324, 1e-6, 0.5, 1.0, INF),
    "top_k": (0, 1, VOCAB, INT64_MAX, -1),
    "min_p": (0.0, 5e-324, 1.0, NAN),
    "presence_penalty": (0.0, 2.0, -2.0, 5e-324),
    "frequency_penalty": (0.0, 2.0, -2.0, -INF),
    "repetition_penalty": (1.0, 0.01, 100.0, 0.0),
    "seed": (None, 0, -(2**63), INT64_MAX),
    "stop": ((), ("\x00",), ("\ufffd",), ("a", "b", "c", "d"), ("",)),
    "stop_token_ids": ((), (0,), tuple(range(64)), (VOCAB,)),
    "logit_bias": (
        (),
        tuple((i, -100.0) for i in range(VOCAB)),
        tuple((i, 100.0) for i in range(0, VOCAB, 2)),
        ((0, NAN),),
    ),
    "min_tokens": (0, 1, 6, 7),
    "logprobs": (None, 0, 20),
    "prompt_logprobs": (None, 0, 20),
    "ignore_eos": (False, True),
}


def random_requests(*, n: int, seed: int) -> Iterator[Hostile]:
    """Every field at an edge at once; no single one need be wrong."""
    rng = random.Random(seed)
    for index in range(n):
        fields = {
            name: rng.choice(edges if rng.random() < 0.2 else edges[:-1])
            for name, edges in EDGES.items()
        }
        length = rng.choice((1, 15, 16, 17, 40, CONTEXT - 6, CONTEXT - 1))
        yield Hostile(
            name=f"random {seed}/{index}: {length} ids, {fields}",
            param="",
            prompt=TokenPrompt(token_ids=tuple(rng.randrange(VOCAB) for _ in range(length))),
            sampling=SamplingParams(**fields),
            max_tokens=rng.choice((1, 6)),
        )
