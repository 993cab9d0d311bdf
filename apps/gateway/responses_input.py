"""Input items of ``POST /v1/responses`` to the turns of a conversation."""

from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from apps.core.exceptions import InvalidRequest
from apps.gateway.chat_schemas import CalledFunction, FunctionName, Message, MessageToolCall
from apps.gateway.schemas import unsupported


class InputText(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="input_text"):
    text: str


class OutputText(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="output_text"):
    """Some fields only come back from an answer."""

    text: str
    annotations: Any = None
    logprobs: Any = None


class Refusal(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="refusal"):
    refusal: str


class ReasoningText(
    msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="reasoning_text"
):
    text: str


class SummaryText(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="summary_text"):
    text: str


Part = InputText | OutputText | Refusal | ReasoningText
ItemType = Literal["message", "function_call", "function_call_output", "reasoning"]


class Item(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One item, whose ``type`` says which fields it has. A message may come without."""

    type: ItemType = "message"
    id: str | None = None
    status: Any = None
    role: Literal["user", "system", "developer", "assistant"] | None = None
    content: str | list[Part] | None = None
    phase: Any = None
    call_id: str | None = None
    name: FunctionName | None = None
    arguments: str | None = None
    output: str | list[InputText] | None = None
    summary: list[SummaryText] | None = None
    encrypted_content: Any = None


_REQUIRED: Final[dict[ItemType, tuple[str, ...]]] = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}
_OPTIONAL: Final[dict[ItemType, tuple[str, ...]]] = {
    "message": ("phase",),
    "function_call": (),
    "function_call_output": (),
    "reasoning": ("content", "summary"),
}
_OF_ALL: Final = frozenset({"type", "id", "status"})


def messages_of(items: str | list[Item], *, instructions: str | None) -> list[Message]:
    """Return the turns; raises InvalidRequest naming the field.

    What the model made between two inputs is one turn: its reasoning, text and calls.
    """
    turns = _Turns()
    if instructions:
        turns.add(Message(role="system", content=instructions))
    if isinstance(items, str):
        turns.add(Message(role="user", content=items))
        return turns.whole()
    if not items:
        raise InvalidRequest(
            "'input' is empty; it needs at least one item.", code="empty_array", param="input"
        )
    for index, item in enumerate(items):
        _check(item, place=f"input[{index}]")
        turns.take(item)
    if not any(turn.role != "system" for turn in turns.whole()):
        raise InvalidRequest("'input' has nothing to answer.", code="invalid_value", param="input")
    return turns.whole()


class _Turns:
    def __init__(self) -> None:
        self._done: list[Message] = []
        self._made: Message | None = None  # the assistant's turn that items still add to

    def add(self, message: Message) -> None:
        self._close()
        self._done.append(message)

    def take(self, item: Item) -> None:
        match item.type:
            case "message" if item.role == "assistant":
                self._open(is_new_step=True).content = _text(item.content)
            case "message":
                assert item.role is not None
                self.add(Message(role=item.role, content=_text(item.content)))
            case "reasoning":
                turn = self._open(is_new_step=True)
                turn.reasoning = (turn.reasoning or "") + _text(item.content or item.summary)
            case "function_call":
                turn = self._open()
                turn.tool_calls = [*(turn.tool_calls or ()), _call(item)]
            case "function_call_output":
                content = _text(item.output)
                self.add(Message(role="tool", tool_call_id=item.call_id, content=content))

    def whole(self) -> list[Message]:
        self._close()
        return self._done

    def _open(self, *, is_new_step: bool = False) -> Message:
        """Return the assistant's turn; a new one where there was more than reasoning already."""
        made = self._made
        if made is not None and is_new_step and (made.content is not None or made.tool_calls):
            self._close()
        if self._made is None:
            self._made = Message(role="assistant")
        return self._made

    def _close(self) -> None:
        made, self._made = self._made, None
        if made is not None and (made.content is not None or made.tool_calls):
            self._done.append(made)


def _check(item: Item, *, place: str) -> None:
    for name in _REQUIRED[item.type]:
        value = getattr(item, name)
        if value is None or (name == "call_id" and not value):
            raise InvalidRequest(
                f"Missing required parameter: '{place}.{name}'.",
                code="missing_required_parameter",
                param=f"{place}.{name}",
            )
    known = _OF_ALL.union(_REQUIRED[item.type], _OPTIONAL[item.type])
    for name in item.__struct_fields__:
        if name not in known and getattr(item, name) is not None:
            raise unsupported(f"{place}.{name}")


def _call(item: Item) -> MessageToolCall:
    assert item.call_id is not None and item.name is not None and item.arguments is not None
    function = CalledFunction(name=item.name, arguments=item.arguments)
    return MessageToolCall(id=item.call_id, function=function)


def _text(content: str | Iterable[Part | SummaryText] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.refusal if isinstance(part, Refusal) else part.text for part in content)
