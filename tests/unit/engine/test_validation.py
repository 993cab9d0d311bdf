"""What a model cannot honour is refused, and the message says which field and why."""

import math
from typing import Any

import pytest

from engine_service.backends.base import ModelInfo
from engine_service.errors import RequestError
from engine_service.protocol import SamplingParams
from engine_service.validation import validate_request

INFO = ModelInfo(
    name="m",
    architecture="LlamaForCausalLM",
    dtype="float32",
    device="cpu",
    kernels="none",
    backend="native",
    vocab_size=100,
    max_model_len=20,
    block_size=4,
    n_blocks=5,
    max_sequences=2,
    eos_token_ids=frozenset({2}),
)


def validate(
    *, prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int | None = None, **sampling: Any
) -> int:
    return validate_request(
        prompt_token_ids=prompt,
        sampling=SamplingParams(**sampling),
        max_tokens=max_tokens,
        info=INFO,
        prompt_param="messages",
    )


def test_the_rest_of_the_context_is_what_max_tokens_leaves_open() -> None:
    assert validate() == 17
    assert validate(max_tokens=17) == 17
    assert validate(max_tokens=1) == 1
    assert validate(prompt=(0,) * 19) == 1


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 2.0},
        {"top_p": 1e-9},
        {"top_k": 10**6},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"stop": ("a" * 256, "b", "c", "d")},
        {"min_p": 1.0},
        {"presence_penalty": -2.0, "frequency_penalty": 2.0},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100.0},
        {"logit_bias": ((0, -100.0), (99, 100.0))},
        {"stop_token_ids": (0, 99)},
        {"min_tokens": 17},
        {"n": 2},
        {"logprobs": 0, "prompt_logprobs": 20},
    ],
)
def test_the_edges_are_allowed(sampling: dict[str, Any]) -> None:
    assert validate(**sampling) == 17


FLOATS = ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
HOSTILE: list[tuple[str, Any]] = [
    *((param, bad) for param in FLOATS for bad in (math.nan, math.inf, -math.inf, 1e300, -3.0)),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", 1e-300),
    *(("logit_bias", ((1, bad),)) for bad in (math.nan, math.inf, -math.inf, 100.5)),
    *(("logit_bias", ((bad, 1.0),)) for bad in (-1, 100, 2**63 - 1)),
    ("logit_bias", ((1, 1.0), (1, 2.0))),
    ("logit_bias", tuple((i, 0.0) for i in range(1025))),
    *(("stop_token_ids", (1, bad)) for bad in (-1, 100, -(2**63))),
    ("stop_token_ids", (1,) * 65),
    *(("min_tokens", bad) for bad in (-1, 18, 2**63 - 1)),
    *((param, bad) for param in ("logprobs", "prompt_logprobs") for bad in (-1, 21, 2**63 - 1)),
]


@pytest.mark.parametrize(
    ("case", "code", "param", "message"),
    [
        ({"prompt": ()}, "invalid_value", "messages", "messages is empty."),
        (
            {"prompt": (0,) * 20},
            "context_length_exceeded",
            "messages",
            "The model's context is 20 tokens; messages has 20 and leaves no room for an answer.",
        ),
        (
            {"prompt": (1, 100)},
            "invalid_value",
            "messages",
            "messages has token id 100; the vocabulary is 0 to 99.",
        ),
        (
            {"prompt": (-1, 5)},
            "invalid_value",
            "messages",
            "messages has token id -1; the vocabulary is 0 to 99.",
        ),
        ({"max_tokens": 0}, "invalid_value", "max_tokens", "max_tokens must be at least 1, not 0."),
        (
            {"max_tokens": -4},
            "invalid_value",
            "max_tokens",
            "max_tokens must be at least 1, not -4.",
        ),
        (
            {"max_tokens": 18},
            "context_length_exceeded",
            "max_tokens",
            "The model's context is 20 tokens; the prompt has 3 and max_tokens asks for 18, "
            "1 more than remain.",
        ),
        (
            {"temperature": 2.001},
            "invalid_value",
            "temperature",
            "temperature must be from 0 to 2, not 2.001.",
        ),
        ({"temperature": -0.1}, "invalid_value", "temperature", None),
        ({"temperature": math.nan}, "invalid_value", "temperature", None),
        ({"temperature": math.inf}, "invalid_value", "temperature", None),
        ({"top_p": 0.0}, "invalid_value", "top_p", None),
        ({"top_p": 1.1}, "invalid_value", "top_p", None),
        ({"top_p": math.nan}, "invalid_value", "top_p", None),
        ({"top_k": -1}, "invalid_value", "top_k", "top_k must be 0 (off) or more, not -1."),
        ({"seed": 2**63}, "invalid_value", "seed", None),
        ({"seed": -(2**63) - 1}, "invalid_value", "seed", None),
        *(({param: value}, "invalid_value", param, None) for param, value in HOSTILE),
        ({"max_tokens": 4, "min_tokens": 5}, "invalid_value", "min_tokens", None),
        (
            {"logit_bias": ((100, 1.0),)},
            "invalid_value",
            "logit_bias",
            "logit_bias names token id 100; the vocabulary is 0 to 99.",
        ),
        ({"n": 3}, "invalid_value", "n", "n must be from 1 to 2, not 3."),
        ({"n": 0}, "invalid_value", "n", None),
        ({"stop": ("a",) * 5}, "invalid_value", "stop", None),
        ({"stop": ("",)}, "invalid_value", "stop", "stop must not contain an empty string."),
        ({"stop": ("a" * 257,)}, "invalid_value", "stop", None),
    ],
)
def test_is_refused(case: dict[str, Any], code: str, param: str, message: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        validate(**case)
    assert (caught.value.code, caught.value.param) == (code, param)
    if message is not None:
        assert str(caught.value) == message
