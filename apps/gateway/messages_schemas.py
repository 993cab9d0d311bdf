"""The bodies of ``POST /v1/messages`` and of its token count: turns of content blocks."""

from typing import Any, Final, Literal

import msgspec

from apps.core.exceptions import InvalidRequest
from apps.gateway.chat_schemas import (
    ChatFields,
    Function,
    FunctionName,
    NamedFunction,
    NamedTool,
    ToolBody,
    chat_request,
)
from apps.gateway.messages_blocks import TextBlock, Turn, messages_of
from apps.gateway.schemas import Count, EndUser, Neutral, refuse_unbuilt
from apps.gateway.types import MessagesRequest


class ToolDefinition(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["custom"] | None = None
    name: FunctionName
    input_schema: msgspec.Raw
    description: str | None = None
    strict: bool | None = None
    cache_control: Any = None
    eager_input_streaming: Any = None
    # Known, not built.
    allowed_callers: Any = None
    defer_loading: Any = None
    input_examples: Any = None


class _Choice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    disable_parallel_tool_use: bool | None = None


class AutoChoice(_Choice, tag="auto"):
    """The model decides."""


class AnyChoice(_Choice, tag="any"):
    """At least one tool."""


class ToolChoice(_Choice, tag="tool"):
    """This one."""

    name: FunctionName


class NoneChoice(_Choice, tag="none"):
    """None at all."""


Choice = AutoChoice | AnyChoice | ToolChoice | NoneChoice


class Thinking(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``budget_tokens`` has no effect; ``adaptive`` leaves it to the model's template."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None
    display: Any = None


class Metadata(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    user_id: EndUser | None = None


class CountBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/messages/count_tokens``."""

    model: str
    messages: list[Turn]
    system: str | list[TextBlock] | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    # Accepted, without effect: what a prompt begins with is always kept for the next one.
    cache_control: Any = None
    # Known, not built: refused unless at the value that changes nothing.
    context_management: Any = None
    mcp_servers: Any = None
    output_config: Any = None
    speed: Any = None


class MessagesBody(CountBody, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/messages``."""

    max_tokens: Count
    temperature: float | None = None
    top_p: float | None = None
    top_k: Count | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    service_tier: Any = None
    container: Any = None
    inference_geo: Any = None


_COUNT_NEUTRAL: Final[Neutral] = {
    "context_management": ({},),
    "mcp_servers": ([],),
    "output_config": ({},),
    "speed": ("standard",),
}
_NEUTRAL: Final[Neutral] = {"container": (), "inference_geo": ()}
_TOOL_NEUTRAL: Final[Neutral] = {
    "allowed_callers": ([], ["direct"]),
    "defer_loading": (False,),
    "input_examples": ([],),
}
NEUTRAL: Final[dict[type[msgspec.Struct], Neutral]] = {
    CountBody: _COUNT_NEUTRAL,
    MessagesBody: _COUNT_NEUTRAL | _NEUTRAL,
    ToolDefinition: _TOOL_NEUTRAL,
}


def messages_request(body: MessagesBody) -> MessagesRequest:
    """Return the request that a decoded body asks for; raises InvalidRequest naming the field."""
    refuse_unbuilt(body, _NEUTRAL)
    if body.messages and body.messages[-1].role == "assistant":
        raise InvalidRequest(
            "'messages' must not end with the assistant's turn: this server cannot continue one.",
            code="unsupported_value",
            param="messages",
        )
    fields = _chat_fields(body)
    fields.max_tokens = body.max_tokens
    fields.user = body.metadata.user_id if body.metadata is not None else None
    fields.temperature, fields.top_p, fields.top_k = body.temperature, body.top_p, body.top_k
    fields.stop = body.stop_sequences
    return MessagesRequest.made_of(chat_request(fields), stream=bool(body.stream))


def counted_request(body: CountBody) -> MessagesRequest:
    """Return the request whose prompt is to be counted; raises InvalidRequest naming the field."""
    return MessagesRequest.made_of(chat_request(_chat_fields(body)))


def _chat_fields(body: CountBody) -> ChatFields:
    refuse_unbuilt(body, _COUNT_NEUTRAL)
    choice = body.tool_choice
    return ChatFields(
        model=body.model,
        messages=messages_of(body.messages, system=body.system),
        tools=[_tool(tool, place=f"tools[{i}]") for i, tool in enumerate(body.tools or ())],
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=choice is None or not choice.disable_parallel_tool_use,
        reasoning_effort=_effort(body.thinking),
    )


def _tool(tool: ToolDefinition, *, place: str) -> ToolBody:
    refuse_unbuilt(tool, _TOOL_NEUTRAL, prefix=f"{place}.")
    return ToolBody(
        type="function",
        function=Function(
            name=tool.name,
            description=tool.description,
            parameters=tool.input_schema,
            strict=tool.strict,
        ),
    )


def _tool_choice(choice: Choice | None) -> Literal["auto", "none", "required"] | NamedTool | None:
    match choice:
        case AnyChoice():
            return "required"
        case NoneChoice():
            return "none"
        case ToolChoice(name=name):
            return NamedTool(type="function", function=NamedFunction(name=name))
        case _:
            return None


def _effort(thinking: Thinking | None) -> Literal["none", "medium"] | None:
    if thinking is None or thinking.type == "adaptive":
        return None
    return "medium" if thinking.type == "enabled" else "none"
