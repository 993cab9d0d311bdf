"""The bodies that clients send, decoded once from JSON into typed structs. What a struct does not
name is refused, so that no parameter is silently without effect.

Here is what all ways of asking for text have in common, and completions; conversations are next
door.
"""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from apps.core.exceptions import InvalidRequest
from apps.engines.client import SamplingParams, TextPrompt, TokenPrompt
from apps.gateway.types import CompletionRequest
from apps.routing.types import DEFAULT_NAMES

# The wire to the engine carries 64 bits; what else is wrong with a number, the engine says.
# Whom the client serves, as it calls them: limits may be theirs.
EndUser = Annotated[str, Meta(max_length=512)]
Count = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

# An engine's own bounds. What is over them ends here: a body full of it would hold the loop that
# everybody shares for tenths of a second on its way to the wire.
LogitBias = Annotated[dict[str, float], Meta(max_length=1024)]
StopTokenIds = Annotated[list[Count], Meta(max_length=64)]

COMPLETION_MAX_TOKENS: Final = 16  # what the API promises when the client names none
MAX_PROMPTS: Final = 64


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: Any = None


class Fields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every way of asking for text has in common."""

    model: str
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Count | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stop_token_ids: StopTokenIds | None = None
    min_tokens: Count | None = None
    n: Count | None = None
    ignore_eos: bool | None = None
    user: EndUser | None = None
    # Accepted, without effect.
    metadata: Any = None
    store: Any = None
    service_tier: Any = None

    @property
    def unsaid(self) -> frozenset[str]:
        """The fields that a route may have a default for, and that are not given."""
        return frozenset(name for name in DEFAULT_NAMES if getattr(self, name) is None)

    def sampling(
        self, *, logprobs: int | None = None, prompt_logprobs: int | None = None
    ) -> SamplingParams:
        """Return how tokens are to be chosen; raises InvalidRequest."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=_logit_bias(self.logit_bias or {}),
            seed=self.seed,
            stop=stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            min_tokens=self.min_tokens or 0,
            n=1 if self.n is None else self.n,
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )


class CompletionBody(Fields, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/completions``."""

    prompt: str | list[str | Count | list[Count]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Count | None = None
    echo: bool | None = None
    # Known, not built: refused unless at the value that changes nothing.
    best_of: Any = None
    suffix: Any = None


Neutral = dict[str, tuple[Any, ...]]
_COMPLETION_NEUTRAL: Final[Neutral] = {"best_of": (1,), "suffix": ("",)}
_STREAM_OPTIONS_NEUTRAL: Final[Neutral] = {"include_obfuscation": (False,)}
# For the OpenAPI document: the values at which a known field is not refused.
NEUTRAL: Final[dict[type[msgspec.Struct], Neutral]] = {
    CompletionBody: _COMPLETION_NEUTRAL,
    StreamOptions: _STREAM_OPTIONS_NEUTRAL,
}


def completion_requests(body: CompletionBody) -> tuple[CompletionRequest, ...]:
    """Return the requests that a decoded body asks for, one for each of its prompts.

    Raises:
        InvalidRequest: ``param`` names the field.
    """
    refuse_unbuilt(body, _COMPLETION_NEUTRAL)
    prompts = _prompts(body.prompt)
    stream, include_usage = streaming(stream=body.stream, options=body.stream_options)
    echo = bool(body.echo)
    max_tokens = COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    is_echo_only = echo and max_tokens == 0
    sampling = body.sampling(
        logprobs=body.logprobs, prompt_logprobs=body.logprobs if echo else None
    )
    return tuple(
        CompletionRequest(
            model=body.model,
            prompt=prompt,
            sampling=sampling,
            max_tokens=1 if is_echo_only else max_tokens,
            unsaid=body.unsaid,
            echo=echo,
            is_echo_only=is_echo_only,
            end_user=body.user or None,
            stream=stream,
            include_usage=include_usage,
        )
        for prompt in prompts
    )


def streaming(*, stream: bool | None, options: StreamOptions | None) -> tuple[bool, bool]:
    """Return whether to stream, and whether usage is to come with it; raises InvalidRequest."""
    if options is None:
        return bool(stream), False
    if not stream:
        raise InvalidRequest(
            "'stream_options' is only allowed when 'stream' is true.",
            code="invalid_value",
            param="stream_options",
        )
    refuse_unbuilt(options, _STREAM_OPTIONS_NEUTRAL, prefix="stream_options.")
    return True, bool(options.include_usage)


def refuse_unbuilt(struct: msgspec.Struct, neutral: Neutral, *, prefix: str = "") -> None:
    """Raise InvalidRequest for a field that is neither absent nor at a value without effect."""
    for name, values in neutral.items():
        value = getattr(struct, name)
        if value is not None and not any(_is_same(value, each) for each in values):
            raise unsupported(prefix + name)


def _is_same(value: Any, other: Any) -> bool:
    """Whether two JSON values are equal; to Python, true is also 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def unsupported(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"Unsupported parameter: '{param}' is not supported by this server.",
        code="unsupported_parameter",
        param=param,
    )


def _prompts(
    prompt: str | list[str | int | list[int]],
) -> tuple[TextPrompt | TokenPrompt, ...]:
    if isinstance(prompt, str):
        return (TextPrompt(text=prompt),)
    ids = tuple(item for item in prompt if isinstance(item, int))
    if ids and len(ids) == len(prompt):
        return (TokenPrompt(token_ids=ids),)
    if not 1 <= len(prompt) <= MAX_PROMPTS:
        raise InvalidRequest(
            f"'prompt' must have from 1 to {MAX_PROMPTS} prompts, not {len(prompt)}.",
            code="invalid_value",
            param="prompt",
        )
    if ids:
        raise InvalidRequest(
            "'prompt' mixes token ids with other prompts.", code="invalid_type", param="prompt"
        )
    return tuple(
        TextPrompt(text=item) if isinstance(item, str) else TokenPrompt(token_ids=_ids(item))
        for item in prompt
    )


def _ids(item: int | list[int]) -> tuple[int, ...]:
    assert isinstance(item, list)  # single ids were refused above
    return tuple(item)


def _logit_bias(bias: dict[str, float]) -> tuple[tuple[int, float], ...]:
    try:
        pairs = tuple((int(token_id), value) for token_id, value in bias.items())
    except ValueError:
        raise InvalidRequest(
            "'logit_bias' must map token ids to numbers.", code="invalid_value", param="logit_bias"
        ) from None
    if any(not -(2**31) <= token_id < 2**31 for token_id, _ in pairs):
        raise InvalidRequest(
            "'logit_bias' names a token id out of range.", code="invalid_value", param="logit_bias"
        )
    return pairs
