"""The bodies of conversations: turns, tools, what the answer must be."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from apps.core.exceptions import InvalidRequest
from apps.engines.client import (
    MAX_TOP_LOGPROBS,
    ChatMessage,
    ChatPrompt,
    OutputFormat,
    Tool,
    ToolCall,
    ToolUse,
)
from apps.gateway.schemas import (
    Count,
    Fields,
    Neutral,
    StreamOptions,
    refuse_unbuilt,
    streaming,
    unsupported,
)
from apps.gateway.types import ChatRequest

MAX_TOOLS: Final = 128
FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class TextPart(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str


class RefusalPart(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="refusal"):
    refusal: str


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True):
    name: FunctionName
    arguments: str


class MessageToolCall(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``index`` comes back from clients that joined the pieces of a stream."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Any = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One turn. The fields after ``name`` come back from clients that echo an answer whole."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart | RefusalPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None

    def to_prompt(self, *, place: str) -> ChatMessage:
        """Return the turn for an engine. place: its name, for errors; raises InvalidRequest."""
        refuse_unbuilt(self, _MESSAGE_NEUTRAL, prefix=f"{place}.")
        if self.content is None and not (self.tool_calls or self.refusal):
            raise _missing(f"{place}.content")
        if self.role == "tool" and not self.tool_call_id:
            raise _missing(f"{place}.tool_call_id")
        if self.tool_calls and self.role != "assistant":
            raise unsupported(f"{place}.tool_calls")
        return ChatMessage(
            role="system" if self.role == "developer" else self.role,
            content=_text(self.content) or self.refusal or "",
            name=self.name,
            tool_calls=tuple(
                ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
                for call in self.tool_calls or ()
            ),
            tool_call_id=self.tool_call_id,
            reasoning=self.reasoning or self.reasoning_content,
        )


class Function(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: FunctionName
    description: str | None = None
    parameters: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    strict: bool | None = None


class ToolBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: Function


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    name: FunctionName


class NamedTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: NamedFunction


class TextFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(
    msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_object"
):
    """Any JSON object."""


class JsonSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    schema: msgspec.Raw
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(
    msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"
):
    """A JSON text that obeys a schema, whatever ``strict`` says."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class ChatFields(Fields, kw_only=True, forbid_unknown_fields=True):
    """A conversation, over any wire."""

    messages: list[Message]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: list[ToolBody] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    # Accepted, without effect.
    prompt_cache_key: Any = None
    safety_identifier: Any = None
    prompt_cache_retention: Any = None
    # Known, not built: refused unless at the value that changes nothing.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    moderation: Any = None
    prediction: Any = None
    prompt_cache_options: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class ChatBody(ChatFields, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/chat/completions``."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None


_CHAT_NEUTRAL: Final[Neutral] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": ([], ["text"]),
    "moderation": (),
    "prediction": (),
    "prompt_cache_options": ({},),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_MESSAGE_NEUTRAL: Final[Neutral] = {"annotations": ([],), "audio": (), "function_call": ()}
NEUTRAL: Final[dict[type[msgspec.Struct], Neutral]] = {
    ChatBody: _CHAT_NEUTRAL,
    Message: _MESSAGE_NEUTRAL,
}


def chat_request(body: ChatFields) -> ChatRequest:
    """Return the request that a decoded body asks for; raises InvalidRequest naming the field."""
    refuse_unbuilt(body, _CHAT_NEUTRAL)
    if not body.messages:
        raise InvalidRequest(
            "'messages' is empty; it needs at least one message.",
            code="empty_array",
            param="messages",
        )
    max_tokens, max_tokens_param = _max_tokens(body)
    stream, include_usage = True, False
    if isinstance(body, ChatBody):
        stream, include_usage = streaming(stream=body.stream, options=body.stream_options)
    return ChatRequest(
        model=body.model,
        prompt=ChatPrompt(
            messages=tuple(
                message.to_prompt(place=f"messages[{index}]")
                for index, message in enumerate(body.messages)
            ),
            tool_use=_tool_use(body),
            thinking=None if body.reasoning_effort is None else body.reasoning_effort != "none",
        ),
        sampling=body.sampling(logprobs=_n_logprobs(body)),
        max_tokens=max_tokens,
        max_tokens_param=max_tokens_param,
        unsaid=body.unsaid if max_tokens is None else body.unsaid - {"max_tokens"},
        output_format=_output_format(body.response_format),
        end_user=body.user or None,
        stream=stream,
        include_usage=include_usage,
    )


def _max_tokens(body: ChatFields) -> tuple[int | None, str]:
    if body.max_completion_tokens is None:
        return body.max_tokens, "max_tokens"
    if body.max_tokens not in (None, body.max_completion_tokens):
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' differ; give one of them.",
            code="invalid_value",
            param="max_tokens",
        )
    return body.max_completion_tokens, "max_completion_tokens"


def _n_logprobs(body: ChatFields) -> int | None:
    n_top = body.top_logprobs or 0
    if body.logprobs:
        # An engine, which knows of one number, would name the other field.
        if not 0 <= n_top <= MAX_TOP_LOGPROBS:
            raise InvalidRequest(
                f"'top_logprobs' must be from 0 to {MAX_TOP_LOGPROBS}, not {n_top}.",
                code="invalid_value",
                param="top_logprobs",
            )
        return n_top
    if n_top:
        raise InvalidRequest(
            "'top_logprobs' is only allowed when 'logprobs' is true.",
            code="invalid_value",
            param="top_logprobs",
        )
    return None


def _output_format(response_format: ResponseFormat | None) -> OutputFormat | None:
    match response_format:
        case JsonObjectFormat():
            return OutputFormat()
        case JsonSchemaFormat(json_schema=JsonSchema(schema=schema)):
            param = "response_format.json_schema.schema"
            return OutputFormat(json_schema=bytes(schema).decode(), param=param)
        case _:
            return None


def _tool_use(body: ChatFields) -> ToolUse | None:
    tools, choice = body.tools or [], body.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest(
                "'tool_choice' is only allowed with 'tools'.",
                code="invalid_value",
                param="tool_choice",
            )
        return None
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(
            f"'tools' may have at most {MAX_TOOLS} entries, not {len(tools)}.",
            code="invalid_value",
            param="tools",
        )
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidRequest("'tools' names a function twice.", code="invalid_value", param="tools")
    only = choice.function.name if isinstance(choice, NamedTool) else None
    if only is not None and only not in names:
        raise InvalidRequest(
            f"'tool_choice' names {only!r}, which is not among 'tools'.",
            code="invalid_value",
            param="tool_choice",
        )
    return ToolUse(
        tools=tuple(_tool(tool.function) for tool in tools),
        choice="required" if isinstance(choice, NamedTool) else choice or "auto",
        only=only,
        parallel=body.parallel_tool_calls is not False,
    )


def _tool(function: Function) -> Tool:
    parameters = bytes(function.parameters)
    return Tool(
        name=function.name,
        description=function.description,
        parameters="" if parameters == b"null" else parameters.decode(),
        strict=bool(function.strict),
    )


def _text(content: str | list[TextPart | RefusalPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


def _missing(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param
    )
