"""Which requests nano-vllm can run. It checks little itself: an empty prompt, no token to make or
what never fits its pool fail an assertion in the middle of a step that others are in, a prompt
beyond its tables reads past them, and what it does not know it would pass over."""

from typing import Final

from engine_service.backends.base import EngineRequest, ModelInfo
from engine_service.validation import unsupported_parameter, validate_request

# What of a request its sampler and scheduler have no place for. ``stop`` is done on the text, and
# ``stop_token_ids`` by the adapter.
UNSUPPORTED: Final = frozenset(
    {
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "n",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "min_tokens",
        "logprobs",
        "prompt_logprobs",
    }
)
# Its sampler divides by the temperature and refuses 0. Logits come in bfloat16, in which two of at
# least 2**-6 in size differ by 2**-13 or not at all. Divided by this that is more than 104, beyond
# which exp(-x) is 0 in float32: the lesser one cannot be drawn, and the draw is greedy. Only among
# equal logits it is by chance, where our own backend takes the first.
GREEDY_TEMPERATURE: Final = 1e-6


def admit(request: EngineRequest, *, info: ModelInfo) -> None:
    """Let through what nano-vllm can run.

    info: ``max_model_len`` is within both the model's context and the KV pool.

    Raises:
        RequestError: names the field, and says that it is this backend that lacks it.
    """
    if request.mask is not None:
        raise unsupported_parameter("response_format", backend=info.backend)
    validate_request(
        prompt_token_ids=request.prompt_token_ids,
        sampling=request.sampling,
        max_tokens=request.max_new_tokens,
        info=info,
        prompt_param="prompt",
    )


def temperature_for(temperature: float) -> float:
    """Return what nano-vllm is told in place of an admitted request's temperature."""
    return max(temperature, GREEDY_TEMPERATURE)
