"""A request as a remote server reads it: OpenAI's bodies, and the bound of what their prompts cost.

A field is sent where it has an effect, so that a server that lacks one need not be asked about it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from apps.engines.client import (
    ChatMessage,
    ChatPrompt,
    EmbedInput,
    OutputFormat,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolUse,
)
from apps.engines.exceptions import EngineRequestError
from apps.engines.types import RemoteTarget

CHAT: Final = "chat/completions"
COMPLETIONS: Final = "completions"
EMBEDDINGS: Final = "embeddings"
MAX_N: Final = 16

# No tokenizer makes more tokens of a text than it has bytes. What a chat template adds of its own
# is allowed for: a system prompt, the marks around a turn, tools spelled out with spaces.
_TEMPLATE_TOKENS: Final = 64
_TURN_TOKENS: Final = 16
_TOOLS_TOKENS: Final = 512
_TOOLS_FACTOR: Final = 2
_SPECIAL_TOKENS: Final = 8  # that a tokenizer adds by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """path: below the server's base URL. fields: its body but for the length of the answers.
    n_prompt_tokens: at most. has_length: the client said how long an answer may be."""

    path: str
    fields: dict[str, Any]
    stops: tuple[str, ...]
    n_answers: int
    n_prompt_tokens: int
    max_new_tokens: int
    has_length: bool
    is_streamed: bool
    lifetime_s: float

    def body(self, max_new_tokens: int) -> bytes:
        """Return the body for answers of so many tokens. Where the client named no length, and
        what was foreseen is granted whole, the model's context ends them: no number could be
        right, because nobody here knows the prompt's."""
        if self.has_length or max_new_tokens < self.max_new_tokens:
            return msgspec.json.encode(self.fields | {"max_tokens": max_new_tokens})
        return msgspec.json.encode(self.fields)


def asked_of(
    *,
    target: RemoteTarget,
    prompt: Prompt,
    sampling: SamplingParams,
    max_tokens: int | None,
    output_format: OutputFormat | None,
    is_streamed: bool,
    lifetime_s: float,
) -> Asked:
    """Return what to ask. Only what counting here depends on is checked here.

    Raises:
        EngineRequestError: it is out of range, or nothing to ask of a remote server.
    """
    _check(sampling, max_tokens=max_tokens, context_length=target.context_length)
    fields: dict[str, Any] = {"model": target.model}
    if isinstance(prompt, ChatPrompt):
        path, fields["messages"] = CHAT, [_message(each) for each in prompt.messages]
        fields |= _tools(prompt.tool_use) if prompt.tool_use is not None else {}
        if prompt.thinking is not None:
            fields["reasoning_effort"] = "medium" if prompt.thinking else "none"
    else:
        path, fields["prompt"] = COMPLETIONS, _input(prompt)
    if is_streamed:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    fields |= _sampling(sampling, is_chat=path == CHAT) | _format(output_format)
    # A prompt leaves its context one token at least, or the server refuses it.
    n_prompt_tokens = min(prompt_bound(prompt), target.context_length - 1)
    return Asked(
        path=path,
        fields=fields,
        stops=sampling.stop,
        n_answers=sampling.n,
        n_prompt_tokens=n_prompt_tokens,
        # Prompt and answer fill the context at most: together with the bound this covers it.
        max_new_tokens=max_tokens or target.context_length - n_prompt_tokens // sampling.n,
        has_length=max_tokens is not None,
        is_streamed=is_streamed,
        lifetime_s=lifetime_s,
    )


def embeddings_body(*, model: str, inputs: Sequence[EmbedInput]) -> bytes:
    fields = {
        "model": model,
        "input": [_input(each) for each in inputs],
        "encoding_format": "float",
    }
    return msgspec.json.encode(fields)


def prompt_bound(prompt: Prompt) -> int:
    """Return how many tokens a prompt has at most."""
    match prompt:
        case TokenPrompt():
            return len(prompt.token_ids)
        case TextPrompt():
            return _size(prompt.text) + _SPECIAL_TOKENS
        case ChatPrompt():
            n_tokens = _TEMPLATE_TOKENS + sum(map(_turn_bound, prompt.messages))
            if prompt.tool_use is not None:
                n_bytes = sum(map(_tool_size, prompt.tool_use.tools))
                n_tokens += _TOOLS_TOKENS + _TOOLS_FACTOR * n_bytes
            return n_tokens


def _turn_bound(message: ChatMessage) -> int:
    texts = [message.role, message.content, message.name, message.tool_call_id, message.reasoning]
    for call in message.tool_calls:
        texts += [call.id, call.name, call.arguments]
    return sum(_size(text) for text in texts if text) + _TURN_TOKENS * (1 + len(message.tool_calls))


def _tool_size(tool: Tool) -> int:
    return _size(tool.name) + _size(tool.description or "") + _size(tool.parameters) + _TURN_TOKENS


def _size(text: str) -> int:
    return len(text.encode("utf-8", errors="surrogatepass"))


def _message(message: ChatMessage) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        fields["name"] = message.name
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.reasoning:
        fields["reasoning_content"] = message.reasoning
    if message.tool_calls:
        fields["content"] = message.content or None
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return fields


def _tools(use: ToolUse) -> dict[str, Any]:
    choice: Any = use.choice
    if use.only is not None:
        choice = {"type": "function", "function": {"name": use.only}}
    fields = {"tools": [_tool(tool) for tool in use.tools], "tool_choice": choice}
    return fields if use.parallel else fields | {"parallel_tool_calls": False}


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters:
        function["parameters"] = msgspec.Raw(tool.parameters.encode())
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _format(wanted: OutputFormat | None) -> dict[str, Any]:
    if wanted is None:
        return {}
    if not wanted.json_schema:
        return {"response_format": {"type": "json_object"}}
    schema = msgspec.Raw(wanted.json_schema.encode())
    named = {"name": "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _check(sampling: SamplingParams, *, max_tokens: int | None, context_length: int) -> None:
    if not 1 <= sampling.n <= MAX_N:
        raise _invalid("n", f"n must be from 1 to {MAX_N}, not {sampling.n}.")
    if max_tokens is not None and max_tokens < 1:
        raise _invalid("max_tokens", f"max_tokens must be at least 1, not {max_tokens}.")
    if max_tokens is not None and max_tokens >= context_length:
        raise EngineRequestError(
            f"The model's context is {context_length} tokens; max_tokens asks for {max_tokens}.",
            code="context_length_exceeded",
            param="max_tokens",
        )
    if sampling.prompt_logprobs is not None:
        raise EngineRequestError(
            "This model does not tell the log probabilities of its prompt.",
            code="unsupported_parameter",
            param="echo",
        )


def _invalid(param: str, text: str) -> EngineRequestError:
    return EngineRequestError(text, code="invalid_value", param=param)


def _sampling(sampling: SamplingParams, *, is_chat: bool) -> dict[str, Any]:
    # The two that servers have defaults of their own for: ours hold, as at our own engines.
    fields: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    fields |= {
        name: value
        for name, value in (
            ("top_k", sampling.top_k),
            ("min_p", sampling.min_p),
            ("presence_penalty", sampling.presence_penalty),
            ("frequency_penalty", sampling.frequency_penalty),
            ("logit_bias", {str(key): value for key, value in sampling.logit_bias}),
            ("stop", list(sampling.stop)),
            ("stop_token_ids", list(sampling.stop_token_ids)),
            ("min_tokens", sampling.min_tokens),
            ("ignore_eos", sampling.ignore_eos),
        )
        if value
    }
    if sampling.repetition_penalty != 1.0:
        fields["repetition_penalty"] = sampling.repetition_penalty
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    if sampling.n != 1:
        fields["n"] = sampling.n
    if sampling.logprobs is not None:
        chat = {"logprobs": True, "top_logprobs": sampling.logprobs}
        fields |= chat if is_chat else {"logprobs": sampling.logprobs}
    return fields


def _input(prompt: TextPrompt | TokenPrompt) -> str | list[int]:
    return prompt.text if isinstance(prompt, TextPrompt) else list(prompt.token_ids)
