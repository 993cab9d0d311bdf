"""The bodies that clients send, decoded once from JSON into typed structs. What a struct does not
name is refused, so that no parameter is silently without effect."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from apps.core.exceptions import InvalidRequest
from apps.engines.client import ChatMessage, ChatPrompt, SamplingParams, TextPrompt, TokenPrompt
from apps.gateway.types import ChatRequest, CompletionRequest

# The wire to the engine carries 64 bits; what else is wrong with a number, the engine says.
Count = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

COMPLETION_MAX_TOKENS: Final = 16  # what the API promises when the client names none


class TextPart(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One turn. The fields after ``name`` come back from clients that echo an answer whole."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None

    def to_prompt(self) -> ChatMessage:
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return ChatMessage(role=role, content=content, name=self.name)


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: Any = None


class _Fields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every way of asking for text has in common."""

    model: str
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Count | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    n: Count | None = None
    ignore_eos: bool | None = None
    # Accepted, without effect.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    # Known, not built: refused unless at the value that changes nothing.
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None

    def sampling(self) -> SamplingParams:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            seed=self.seed,
            stop=stop,
            ignore_eos=bool(self.ignore_eos),
        )


class ChatFields(_Fields, kw_only=True, forbid_unknown_fields=True):
    """A conversation, over any wire."""

    messages: list[Message]
    max_completion_tokens: Count | None = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    moderation: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    tool_choice: Any = None
    tools: Any = None
    top_logprobs: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class ChatBody(ChatFields, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/chat/completions``."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None


class CompletionBody(_Fields, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/completions``."""

    prompt: str | list[str | Count]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    best_of: Any = None
    echo: Any = None
    suffix: Any = None


_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
}
_CHAT_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    **_NEUTRAL,
    "logprobs": (False,),
    "top_logprobs": (0,),
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": ([], ["text"]),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_options": ({},),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({}, {"type": "text"}),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
_COMPLETION_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    **_NEUTRAL,
    "logprobs": (),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}
_MESSAGE_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "refusal": ("",),
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "tool_calls": ([],),
    "tool_call_id": (),
}


def chat_request(body: ChatFields) -> ChatRequest:
    """Return the request that a decoded body asks for; raises InvalidRequest naming the field."""
    _refuse_unbuilt(body, _CHAT_NEUTRAL)
    _refuse_many(body.n)
    if not body.messages:
        raise InvalidRequest(
            "'messages' is empty; it needs at least one message.",
            code="empty_array",
            param="messages",
        )
    for index, message in enumerate(body.messages):
        _refuse_unbuilt(message, _MESSAGE_NEUTRAL, prefix=f"messages[{index}].")
    max_tokens, param = body.max_tokens, "max_tokens"
    if body.max_completion_tokens is not None:
        if max_tokens not in (None, body.max_completion_tokens):
            raise InvalidRequest(
                "'max_tokens' and 'max_completion_tokens' differ; give one of them.",
                code="invalid_value",
                param="max_tokens",
            )
        max_tokens, param = body.max_completion_tokens, "max_completion_tokens"
    stream, include_usage = _streaming(body) if isinstance(body, ChatBody) else (True, False)
    return ChatRequest(
        model=body.model,
        prompt=ChatPrompt(messages=tuple(message.to_prompt() for message in body.messages)),
        sampling=body.sampling(),
        max_tokens=max_tokens,
        max_tokens_param=param,
        stream=stream,
        include_usage=include_usage,
    )


def completion_request(body: CompletionBody) -> CompletionRequest:
    """Return the request that a decoded body asks for; raises InvalidRequest naming the field."""
    _refuse_unbuilt(body, _COMPLETION_NEUTRAL)
    _refuse_many(body.n)
    stream, include_usage = _streaming(body)
    return CompletionRequest(
        model=body.model,
        prompt=_prompt(body.prompt),
        sampling=body.sampling(),
        max_tokens=COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        stream=stream,
        include_usage=include_usage,
    )


def _prompt(prompt: str | list[str | int]) -> TextPrompt | TokenPrompt:
    if isinstance(prompt, str):
        return TextPrompt(text=prompt)
    ids = tuple(item for item in prompt if isinstance(item, int))
    if len(ids) == len(prompt):
        return TokenPrompt(token_ids=ids)
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return TextPrompt(text=prompt[0])
    raise InvalidRequest(
        "'prompt' must be one string or one list of token ids; several prompts are not supported.",
        code="unsupported_value",
        param="prompt",
    )


def _streaming(body: ChatBody | CompletionBody) -> tuple[bool, bool]:
    stream, options = bool(body.stream), body.stream_options
    if options is None:
        return stream, False
    if not stream:
        raise InvalidRequest(
            "'stream_options' is only allowed when 'stream' is true.",
            code="invalid_value",
            param="stream_options",
        )
    if options.include_obfuscation not in (None, False):
        raise _unsupported("stream_options.include_obfuscation")
    return True, bool(options.include_usage)


def _refuse_many(n: int | None) -> None:
    if n not in (None, 1):
        raise InvalidRequest(
            "Only one answer a request is supported: 'n' must be 1.",
            code="unsupported_value",
            param="n",
        )


def _refuse_unbuilt(
    struct: msgspec.Struct, neutral: dict[str, tuple[Any, ...]], *, prefix: str = ""
) -> None:
    for name, values in neutral.items():
        value = getattr(struct, name)
        if value is not None and value not in values:
            raise _unsupported(prefix + name)


def _unsupported(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"Unsupported parameter: '{param}' is not supported by this server.",
        code="unsupported_parameter",
        param=param,
    )
