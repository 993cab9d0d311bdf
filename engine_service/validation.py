"""Refuses, before anything runs, every generation that a model cannot honour; nothing is clamped.

Called by the frontend for each request; knows token ids and parameters, not text or sockets.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from engine_service.errors import RequestError
from engine_service.protocol import (
    MAX_CACHE_TAG_CHARS,
    MAX_CACHE_TAGS,
    MAX_DETOKENIZE_TOKENS,
    MAX_TOP_LOGPROBS,
    SamplingParams,
)

if TYPE_CHECKING:
    from engine_service.backends.base import ModelInfo

MAX_N: Final = 16
MAX_STOP_STRINGS: Final = 4
MAX_STOP_CHARS: Final = 256
MAX_TEMPERATURE: Final = 2.0
MAX_PENALTY: Final = 2.0
# Beyond these the logits would leave float32's range long before they meant anything.
MIN_REPETITION_PENALTY: Final = 0.01
MAX_REPETITION_PENALTY: Final = 100.0
MAX_LOGIT_BIAS: Final = 100.0
MAX_BIASED_TOKENS: Final = 1024
MAX_STOP_TOKEN_IDS: Final = 64
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_DEFAULT_SAMPLING: Final = SamplingParams()


def validate_request(
    *,
    prompt_token_ids: Sequence[int],
    sampling: SamplingParams,
    max_tokens: int | None,
    info: "ModelInfo",
    prompt_param: str,
) -> int:
    """Return how many tokens the request may generate.

    Args:
        prompt_param: the client's name of its prompt, ``messages`` or ``prompt``.

    Raises:
        RequestError: says which field is wrong and what was expected.
    """
    _check_prompt(prompt_token_ids, info=info, param=prompt_param)
    _check_supported(sampling, info=info)
    _check_sampling(sampling)
    _check_n(sampling, info=info)
    _check_penalties(sampling)
    _check_token_ids(sampling, vocab_size=info.vocab_size)
    _check_logprobs(sampling)
    max_new_tokens = _max_new_tokens(max_tokens, n_prompt=len(prompt_token_ids), info=info)
    if not 0 <= sampling.min_tokens <= max_new_tokens:
        raise _invalid(
            "min_tokens",
            f"must be from 0 to the {max_new_tokens} tokens that the answer may have, "
            f"not {sampling.min_tokens}",
        )
    return max_new_tokens


def validate_inputs(inputs: Sequence[Sequence[int]], *, info: "ModelInfo") -> None:
    """Check the texts of an embedding request. Raises RequestError, which names the input."""
    for index, token_ids in enumerate(inputs):
        param = f"input[{index}]"
        if not token_ids:
            raise RequestError(f"{param} is empty.", code="invalid_value", param=param)
        if len(token_ids) > info.max_model_len:
            raise _too_long(
                f"{param} has {len(token_ids)} tokens; this model takes {info.max_model_len}.",
                param=param,
            )
        _check_vocabulary(token_ids, info=info, param=param)


def validate_tokens(token_ids: Sequence[int], *, info: "ModelInfo") -> None:
    """Check the ids that someone wants the text of. Raises RequestError."""
    if len(token_ids) > MAX_DETOKENIZE_TOKENS:
        raise _invalid("tokens", f"may be at most {MAX_DETOKENIZE_TOKENS}, not {len(token_ids)}")
    if token_ids:
        _check_vocabulary(token_ids, info=info, param="tokens")


def validate_cache_tags(tags: Sequence[str]) -> None:
    """Check by what a request's cached blocks can be purged. Raises RequestError."""
    if len(tags) > MAX_CACHE_TAGS:
        raise _invalid("cache_tags", f"may have at most {MAX_CACHE_TAGS} tags, not {len(tags)}")
    if not all(1 <= len(tag) <= MAX_CACHE_TAG_CHARS for tag in tags):
        raise _invalid("cache_tags", f"must be of 1 to {MAX_CACHE_TAG_CHARS} characters each")


def _max_new_tokens(max_tokens: int | None, *, n_prompt: int, info: "ModelInfo") -> int:
    remaining = info.max_model_len - n_prompt
    if max_tokens is None:
        return remaining
    if max_tokens < 1:
        raise _invalid("max_tokens", f"must be at least 1, not {max_tokens}")
    if max_tokens > remaining:
        raise _too_long(
            f"The model's context is {info.max_model_len} tokens; the prompt has "
            f"{n_prompt} and max_tokens asks for {max_tokens}, "
            f"{max_tokens - remaining} more than remain.",
            param="max_tokens",
        )
    return max_tokens


def _check_prompt(token_ids: Sequence[int], *, info: "ModelInfo", param: str) -> None:
    if not token_ids:
        raise RequestError(f"{param} is empty.", code="invalid_value", param=param)
    if len(token_ids) >= info.max_model_len:
        raise _too_long(
            f"The model's context is {info.max_model_len} tokens; {param} has {len(token_ids)} "
            "and leaves no room for an answer.",
            param=param,
        )
    _check_vocabulary(token_ids, info=info, param=param)


def _check_vocabulary(token_ids: Sequence[int], *, info: "ModelInfo", param: str) -> None:
    if min(token_ids) < 0 or max(token_ids) >= info.vocab_size:
        outside = next(i for i in token_ids if not 0 <= i < info.vocab_size)
        raise _invalid(
            param, f"has token id {outside}; the vocabulary is 0 to {info.vocab_size - 1}"
        )


def _check_supported(sampling: SamplingParams, *, info: "ModelInfo") -> None:
    for param in sorted(info.unsupported):
        if getattr(sampling, param) != getattr(_DEFAULT_SAMPLING, param):
            raise unsupported_parameter(param, backend=info.backend)


def unsupported_parameter(param: str, *, backend: str) -> RequestError:
    """Return the error of a parameter that only other backends know."""
    return RequestError(
        f"{param} is not supported by this deployment: the {backend} backend lacks it.",
        code="unsupported_parameter",
        param=param,
    )


def _check_sampling(sampling: SamplingParams) -> None:
    # Comparisons with NaN are false, so each range is written as what must hold.
    if not (math.isfinite(sampling.temperature) and 0.0 <= sampling.temperature <= MAX_TEMPERATURE):
        raise _invalid("temperature", f"must be from 0 to 2, not {sampling.temperature}")
    if not 0.0 < sampling.top_p <= 1.0:
        raise _invalid("top_p", f"must be above 0 and at most 1, not {sampling.top_p}")
    if not 0 <= sampling.top_k <= _INT64_MAX:
        raise _invalid("top_k", f"must be 0 (off) or more, not {sampling.top_k}")
    if sampling.seed is not None and not _INT64_MIN <= sampling.seed <= _INT64_MAX:
        raise _invalid("seed", f"must be a 64-bit integer, not {sampling.seed}")
    _check_stop(sampling.stop)


def _check_n(sampling: SamplingParams, *, info: "ModelInfo") -> None:
    most = min(MAX_N, info.max_sequences)
    if not 1 <= sampling.n <= most:
        raise _invalid("n", f"must be from 1 to {most}, not {sampling.n}")


def _check_penalties(sampling: SamplingParams) -> None:
    if not 0.0 <= sampling.min_p <= 1.0:
        raise _invalid("min_p", f"must be from 0 (off) to 1, not {sampling.min_p}")
    for param in ("presence_penalty", "frequency_penalty"):
        value = getattr(sampling, param)
        if not -MAX_PENALTY <= value <= MAX_PENALTY:
            raise _invalid(param, f"must be from -2 to 2, not {value}")
    if not MIN_REPETITION_PENALTY <= sampling.repetition_penalty <= MAX_REPETITION_PENALTY:
        raise _invalid(
            "repetition_penalty",
            f"must be from {MIN_REPETITION_PENALTY:g} to {MAX_REPETITION_PENALTY:g}, "
            f"not {sampling.repetition_penalty}",
        )


def _check_token_ids(sampling: SamplingParams, *, vocab_size: int) -> None:
    biased = [token_id for token_id, _ in sampling.logit_bias]
    for param, ids, most in (
        ("logit_bias", biased, MAX_BIASED_TOKENS),
        ("stop_token_ids", sampling.stop_token_ids, MAX_STOP_TOKEN_IDS),
    ):
        if len(ids) > most:
            raise _invalid(param, f"may name at most {most} tokens, not {len(ids)}")
        outside = next((i for i in ids if not 0 <= i < vocab_size), None)
        if outside is not None:
            raise _invalid(
                param, f"names token id {outside}; the vocabulary is 0 to {vocab_size - 1}"
            )
    if len(set(biased)) < len(biased):
        raise _invalid("logit_bias", "must not name a token twice")
    for token_id, bias in sampling.logit_bias:
        if not -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS:
            raise _invalid("logit_bias", f"must be from -100 to 100, not {bias} (id {token_id})")


def _check_logprobs(sampling: SamplingParams) -> None:
    for param in ("logprobs", "prompt_logprobs"):
        value = getattr(sampling, param)
        if value is not None and not 0 <= value <= MAX_TOP_LOGPROBS:
            raise _invalid(param, f"must be from 0 to {MAX_TOP_LOGPROBS}, not {value}")


def _check_stop(stop: tuple[str, ...]) -> None:
    if len(stop) > MAX_STOP_STRINGS:
        raise _invalid("stop", f"may list at most {MAX_STOP_STRINGS} strings, not {len(stop)}")
    for text in stop:
        if not text:
            raise _invalid("stop", "must not contain an empty string")
        if len(text) > MAX_STOP_CHARS:
            raise _invalid(
                "stop", f"strings may have at most {MAX_STOP_CHARS} characters, not {len(text)}"
            )


def _invalid(param: str, expectation: str) -> RequestError:
    return RequestError(f"{param} {expectation}.", code="invalid_value", param=param)


def _too_long(message: str, *, param: str) -> RequestError:
    return RequestError(message, code="context_length_exceeded", param=param)
