"""The body of ``POST /v1/responses``: input items instead of messages, nothing of which is kept."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from apps.core.exceptions import InvalidRequest
from apps.engines.client import OutputFormat
from apps.gateway.chat_schemas import (
    ChatFields,
    Function,
    FunctionName,
    JsonObjectFormat,
    NamedFunction,
    NamedTool,
    TextFormat,
    ToolBody,
    chat_request,
)
from apps.gateway.responses_input import Item, messages_of
from apps.gateway.schemas import Count, EndUser, Neutral, refuse_unbuilt
from apps.gateway.types import ResponsesRequest

NO_SCHEMA: Final = msgspec.Raw(b"null")
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class FunctionTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: msgspec.Raw = msgspec.field(default_factory=lambda: NO_SCHEMA)
    strict: bool | None = None


class ToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    name: FunctionName


class JsonSchemaFormat(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"
):
    """A JSON text that obeys a schema, whatever ``strict`` says."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    schema: msgspec.Raw
    description: str | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    verbosity: Any = None


class ReasoningOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    effort: Effort | None = None
    summary: Any = None
    generate_summary: Any = None


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_obfuscation: Any = None


class ResponsesBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, str] | None = None
    user: EndUser | None = None
    # Accepted, without effect.
    store: bool | None = None
    client_metadata: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    service_tier: Any = None
    # Known, not built: refused unless at the value that changes nothing.
    background: Any = None
    context_management: Any = None
    conversation: Any = None
    include: Any = None
    max_tool_calls: Any = None
    moderation: Any = None
    previous_response_id: Any = None
    prompt: Any = None
    prompt_cache_options: Any = None
    top_logprobs: Any = None
    truncation: Any = None


_NEUTRAL: Final[Neutral] = {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    # Reasoning comes readable, and is taken back so: there is none to encrypt.
    "include": ([], ["reasoning.encrypted_content"]),
    "max_tool_calls": (),
    "moderation": (),
    "previous_response_id": (),
    "prompt": (),
    "prompt_cache_options": ({},),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
# The server chooses a summary by "auto", and this one makes none.
_REASONING_NEUTRAL: Final[Neutral] = {"summary": ("auto",), "generate_summary": ("auto",)}
NEUTRAL: Final[dict[type[msgspec.Struct], Neutral]] = {
    ResponsesBody: _NEUTRAL,
    ReasoningOptions: _REASONING_NEUTRAL,
}


def responses_request(body: ResponsesBody) -> ResponsesRequest:
    """Return the request that a decoded body asks for; raises InvalidRequest naming the field."""
    refuse_unbuilt(body, _NEUTRAL)
    reasoning, text = body.reasoning or ReasoningOptions(), body.text or TextOptions()
    refuse_unbuilt(reasoning, _REASONING_NEUTRAL, prefix="reasoning.")
    refuse_unbuilt(text, {"verbosity": ("medium",)}, prefix="text.")
    if body.stream_options is not None:
        if not body.stream:
            raise InvalidRequest(
                "'stream_options' is only allowed when 'stream' is true.",
                code="invalid_value",
                param="stream_options",
            )
        refuse_unbuilt(
            body.stream_options, {"include_obfuscation": (False,)}, prefix="stream_options."
        )
    chat = chat_request(
        ChatFields(
            model=body.model,
            messages=messages_of(body.input, instructions=body.instructions),
            max_tokens=body.max_output_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            tools=[_tool(tool) for tool in body.tools or ()],
            tool_choice=_tool_choice(body.tool_choice),
            parallel_tool_calls=body.parallel_tool_calls,
            reasoning_effort=reasoning.effort,
            user=body.user,
        )
    )
    return ResponsesRequest.made_of(
        chat,
        max_tokens_param="max_output_tokens",
        output_format=_output_format(text),
        stream=bool(body.stream),
    )


def _tool(tool: FunctionTool) -> ToolBody:
    return ToolBody(
        type="function",
        function=Function(
            name=tool.name,
            description=tool.description,
            parameters=tool.parameters,
            strict=tool.strict,
        ),
    )


def _tool_choice(
    choice: Literal["auto", "none", "required"] | ToolChoice | None,
) -> Literal["auto", "none", "required"] | NamedTool | None:
    if isinstance(choice, ToolChoice):
        return NamedTool(type="function", function=NamedFunction(name=choice.name))
    return choice


def _output_format(text: TextOptions) -> OutputFormat | None:
    match text.format:
        case JsonObjectFormat():
            return OutputFormat(param="text.format")
        case JsonSchemaFormat(schema=schema):
            return OutputFormat(json_schema=bytes(schema).decode(), param="text.format.schema")
        case _:
            return None
