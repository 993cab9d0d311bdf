"""Turns of content blocks to the turns of a conversation."""

from typing import Any, Final, Literal

import msgspec

from apps.core.exceptions import InvalidRequest
from apps.gateway.chat_schemas import CalledFunction, FunctionName, Message, MessageToolCall
from apps.gateway.schemas import Neutral, refuse_unbuilt

# Between the text blocks of a turn, which are paragraphs of their own.
BETWEEN: Final = "\n"
ERROR_MARK: Final = "Error: "


class TextBlock(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="text"
):
    """``cache_control`` has no effect: prompts are kept without it."""

    text: str
    cache_control: Any = None
    citations: Any = None


class ThinkingBlock(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="thinking"
):
    """``signature`` is not looked at."""

    thinking: str
    signature: str | None = None


class ToolUseBlock(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="tool_use"
):
    id: str
    name: FunctionName
    input: dict[str, Any]
    cache_control: Any = None
    caller: Any = None


class ToolResultBlock(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="tool_result"
):
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: Any = None


Block = TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock
_TEXT_NEUTRAL: Final[Neutral] = {"citations": ([],)}
_TOOL_USE_NEUTRAL: Final[Neutral] = {"caller": ({"type": "direct"},)}


class Turn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant"]
    content: str | list[Block]


def messages_of(turns: list[Turn], *, system: str | list[TextBlock] | None) -> list[Message]:
    """Return the turns as chats have them; raises InvalidRequest naming the field."""
    if not turns:
        raise InvalidRequest(
            "'messages' is empty; it needs at least one message.",
            code="empty_array",
            param="messages",
        )
    found = []
    if system:
        found.append(Message(role="system", content=_text(system, place="system")))
    for index, turn in enumerate(turns):
        place = f"messages[{index}].content"
        if isinstance(turn.content, str):
            found.append(Message(role=turn.role, content=turn.content))
        elif turn.role == "user":
            found += _user_turns(turn.content, place=place)
        else:
            found.append(_assistant_turn(turn.content, place=place))
    return found


def _user_turns(blocks: list[Block], *, place: str) -> list[Message]:
    """Return a turn for each result of a tool, and one for the text between two of them."""
    found: list[Message] = []
    texts: list[TextBlock] = []
    for index, block in enumerate(blocks):
        match block:
            case TextBlock():
                texts.append(block)
            case ToolResultBlock():
                found += _spoken(texts, place=place)
                texts = []
                found.append(_result(block, place=f"{place}[{index}]"))
            case _:
                raise _misplaced(f"{place}[{index}]", role="user")
    found += _spoken(texts, place=place)
    if not found:
        raise InvalidRequest(f"'{place}' is empty.", code="empty_array", param=place)
    return found


def _assistant_turn(blocks: list[Block], *, place: str) -> Message:
    message = Message(role="assistant")
    texts: list[TextBlock] = []
    calls: list[MessageToolCall] = []
    for index, block in enumerate(blocks):
        match block:
            case TextBlock():
                texts.append(block)
            case ThinkingBlock():
                message.reasoning = (message.reasoning or "") + block.thinking
            case ToolUseBlock():
                refuse_unbuilt(block, _TOOL_USE_NEUTRAL, prefix=f"{place}[{index}].")
                calls.append(_call(block))
            case _:
                raise _misplaced(f"{place}[{index}]", role="assistant")
    message.content = _text(texts, place=place) if texts or not calls else None
    message.tool_calls = calls or None
    return message


def _spoken(texts: list[TextBlock], *, place: str) -> list[Message]:
    return [Message(role="user", content=_text(texts, place=place))] if texts else []


def _result(block: ToolResultBlock, *, place: str) -> Message:
    if not block.tool_use_id:
        param = f"{place}.tool_use_id"
        raise InvalidRequest(f"'{param}' is empty.", code="invalid_value", param=param)
    text = _text(block.content or "", place=f"{place}.content")
    return Message(
        role="tool",
        tool_call_id=block.tool_use_id,
        content=ERROR_MARK + text if block.is_error else text,
    )


def _call(block: ToolUseBlock) -> MessageToolCall:
    arguments = msgspec.json.encode(block.input).decode()
    return MessageToolCall(
        id=block.id, function=CalledFunction(name=block.name, arguments=arguments)
    )


def _text(content: str | list[TextBlock], *, place: str) -> str:
    if isinstance(content, str):
        return content
    for block in content:
        refuse_unbuilt(block, _TEXT_NEUTRAL, prefix=f"{place}[].")
    return BETWEEN.join(block.text for block in content)


def _misplaced(param: str, *, role: str) -> InvalidRequest:
    return InvalidRequest(
        f"'{param}' is of a type that a turn of the {role} does not have.",
        code="invalid_value",
        param=param,
    )
