"""What nano-vllm cannot run is refused before it sees it, by name; the rest is let through."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from engine_service.backends.base import EngineRequest, ModelInfo
from engine_service.backends.nanovllm.admission import (
    GREEDY_TEMPERATURE,
    UNSUPPORTED,
    admit,
    temperature_for,
)
from engine_service.config import EngineConfig
from engine_service.errors import ModelError, RequestError
from engine_service.protocol import SamplingParams
from engine_service.validation import validate_request

INFO = ModelInfo(
    name="tiny",
    architecture="Qwen3ForCausalLM",
    dtype="bfloat16",
    device="cuda",
    kernels="none",
    backend="nanovllm",
    vocab_size=320,
    max_model_len=512,
    block_size=256,
    n_blocks=2,
    max_sequences=8,
    eos_token_ids=frozenset({257}),
    unsupported=UNSUPPORTED,
    takes_masks=False,
)
OTHER_THAN_DEFAULT: dict[str, Any] = {
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.1,
    "seed": 0,
    "n": 2,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "logit_bias": ((1, 1.0),),
    "min_tokens": 1,
    "logprobs": 0,
    "prompt_logprobs": 0,
}


def make_request(
    *, n_prompt: int = 10, n_tokens: int = 10, first: int = 1, **sampling: Any
) -> EngineRequest:
    return EngineRequest(
        key=1,
        prompt_token_ids=tuple(range(first, first + n_prompt)),
        sampling=SamplingParams(**sampling),
        max_new_tokens=n_tokens,
    )


def refusal(request: EngineRequest) -> tuple[str, str | None]:
    with pytest.raises(RequestError) as error:
        admit(request, info=INFO)
    return error.value.code, error.value.param


def test_what_it_knows_is_let_through() -> None:
    admit(make_request(n_prompt=300, n_tokens=212), info=INFO)
    admit(
        make_request(temperature=0.0, stop=("x",), stop_token_ids=(3,), ignore_eos=True), info=INFO
    )


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        (make_request(n_prompt=0), "invalid_value", "prompt"),
        (make_request(n_tokens=0), "invalid_value", "max_tokens"),
        (make_request(n_tokens=-1), "invalid_value", "max_tokens"),
        (make_request(n_prompt=512), "context_length_exceeded", "prompt"),
        (make_request(n_prompt=10**4), "context_length_exceeded", "prompt"),
        (make_request(n_prompt=300, n_tokens=213), "context_length_exceeded", "max_tokens"),
        (make_request(first=311), "invalid_value", "prompt"),
        (make_request(first=-1), "invalid_value", "prompt"),
        (make_request(temperature=float("nan")), "invalid_value", "temperature"),
        (make_request(temperature=-0.1), "invalid_value", "temperature"),
        (make_request(stop_token_ids=(320,)), "invalid_value", "stop_token_ids"),
        (
            replace(make_request(), mask=SimpleNamespace()),  # type: ignore[arg-type]
            "unsupported_parameter",
            "response_format",
        ),
    ],
)
def test_what_would_end_it_is_refused(request_: EngineRequest, code: str, param: str) -> None:
    assert refusal(request_) == (code, param)


def test_each_parameter_that_it_lacks_is_refused_by_name() -> None:
    assert set(OTHER_THAN_DEFAULT) == UNSUPPORTED
    for param, value in OTHER_THAN_DEFAULT.items():
        assert refusal(make_request(**{param: value})) == ("unsupported_parameter", param)
    with pytest.raises(RequestError, match="the nanovllm backend lacks it"):
        admit(make_request(top_k=1), info=INFO)


def test_every_sampling_parameter_is_either_known_or_refused() -> None:
    """One that is added to the protocol later must be thought of here."""
    known = {"temperature", "stop", "stop_token_ids", "ignore_eos"}
    assert UNSUPPORTED | known == set(SamplingParams.__struct_fields__)


def test_other_backends_take_them() -> None:
    info = replace(INFO, unsupported=frozenset(), backend="native")
    for param, value in OTHER_THAN_DEFAULT.items():
        sampling = msgspec.structs.replace(SamplingParams(), **{param: value})
        validate_request(
            prompt_token_ids=[1], sampling=sampling, max_tokens=4, info=info, prompt_param="prompt"
        )


@pytest.mark.parametrize(
    ("asked", "told"),
    [(0.0, GREEDY_TEMPERATURE), (1e-12, GREEDY_TEMPERATURE), (0.01, 0.01), (2.0, 2.0)],
)
def test_temperature_0_is_one_that_its_sampler_takes_and_is_greedy(
    asked: float, told: float
) -> None:
    assert temperature_for(asked) == told
    assert told > 1e-10  # what its SamplingParams asserts


def test_a_backend_that_nobody_knows_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match="backend must be one of native, nanovllm, not 'vllm'"):
        EngineConfig(model_dir=tmp_path, backend="vllm")  # type: ignore[arg-type]
