"""Turns as a chat template takes them."""

import json
from typing import Any

from engine_service.conversation.tool_format import (
    ToolFormat,
    function_of,
    instructions,
    mentions_tools,
)
from engine_service.protocol import ChatMessage, ChatPrompt, Tool


def template_arguments(
    prompt: ChatPrompt, *, template: str, tool_format: ToolFormat | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the turns that ``apply_chat_template`` takes, and its other arguments.

    Where the template does not know of tools, they, their calls and answers become plain text.
    """
    tools = offered_tools(prompt)
    arguments: dict[str, Any] = {}
    if prompt.thinking is not None:
        arguments["enable_thinking"] = prompt.thinking
    if mentions_tools(template):
        messages = [_native_turn(turn) for turn in prompt.messages]
        if tools:
            arguments["tools"] = [function_of(tool) for tool in tools]
    else:
        messages = [_plain_turn(turn, tool_format=tool_format) for turn in prompt.messages]
        if tools:
            assert prompt.tool_use is not None
            text = instructions(tools, must_call=prompt.tool_use.choice == "required")
            messages = _with_instructions(messages, text)
    return messages, arguments


def offered_tools(prompt: ChatPrompt) -> tuple[Tool, ...]:
    """Return the tools that the model may call now."""
    use = prompt.tool_use
    return () if use is None or use.choice == "none" else use.tools


def n_chars(prompt: ChatPrompt) -> int:
    """Return how many characters of the client's own the rendered prompt has at least."""
    turns = sum(len(turn.content) + 1 for turn in prompt.messages)
    return turns + sum(len(tool.parameters) for tool in offered_tools(prompt))


def _native_turn(turn: ChatMessage) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.name is not None:
        fields["name"] = turn.name
    if turn.tool_call_id is not None:
        fields["tool_call_id"] = turn.tool_call_id
    if turn.reasoning:
        fields["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in turn.tool_calls
        ]
    return fields


def _arguments(text: str) -> Any:
    """Templates print an object; what is not JSON is passed on as the text it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _plain_turn(turn: ChatMessage, *, tool_format: ToolFormat | None) -> dict[str, Any]:
    if turn.role == "tool":
        content = f"<tool_response>\n{turn.content}\n</tool_response>"
        return {"role": "user", "content": content}
    parts = [turn.content] if turn.content else []
    if tool_format is not None:
        parts += [
            tool_format.write(name=call.name, arguments=call.arguments) for call in turn.tool_calls
        ]
    name = {} if turn.name is None else {"name": turn.name}
    return {"role": turn.role, "content": "\n".join(parts)} | name


def _with_instructions(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
