"""How models write the calls of tools into their text."""

import json
from dataclasses import dataclass
from typing import Final

from engine_service.protocol import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """A call is ``opening``, an object of a name and arguments, then ``closing``.

    opening: empty where the object alone, at the beginning of an answer, is the call; then there
    is one call at most. arguments_key: what the object calls the arguments.
    """

    opening: str
    arguments_key: str
    closing: str

    @property
    def trigger(self) -> str:
        """What in a text means that a call begins."""
        return self.opening.strip()

    def head(self, name: str) -> str:
        """Return all that comes before the arguments of a call."""
        return f'{self.opening}{{"name": {json.dumps(name)}, "{self.arguments_key}": '

    @property
    def tail(self) -> str:
        """All that comes after the arguments."""
        return "}" + self.closing

    def write(self, *, name: str, arguments: str) -> str:
        """Return a call as the model would have written it."""
        return self.head(name) + arguments + self.tail


# Of NousResearch's Hermes models (https://github.com/NousResearch/Hermes-Function-Calling), Qwen's
# and many others.
HERMES: Final = ToolFormat(
    opening="<tool_call>\n", arguments_key="arguments", closing="\n</tool_call>"
)
# https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1
LLAMA3: Final = ToolFormat(opening="", arguments_key="parameters", closing="")


def mentions_tools(template: str) -> bool:
    """Return whether a chat template tells its model of tools by itself."""
    return "tools" in template


def tool_format(template: str) -> ToolFormat | None:
    """Return how a model with this template calls tools; None if that is not known here.

    A template that knows nothing of tools leaves the format to us.
    """
    if not mentions_tools(template) or HERMES.trigger in template:
        return HERMES
    if '"parameters"' in template and '"name"' in template and "[TOOL_CALLS]" not in template:
        return LLAMA3
    return None


def instructions(tools: tuple[Tool, ...], *, must_call: bool) -> str:
    """Return what a model is told of its tools where its template would not tell it."""
    described = "\n".join(json.dumps(function_of(tool), ensure_ascii=False) for tool in tools)
    rule = "Answer with a call." if must_call else "Call one if it helps to answer."
    return (
        f"You have these functions, each described by a JSON object:\n{described}\n{rule} "
        'A call is written as\n<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
    )


def function_of(tool: Tool) -> dict[str, object]:
    """Return the description of a tool in the form that templates and models know."""
    parameters = json.loads(tool.parameters) if tool.parameters else {"type": "object"}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {
        "type": "function",
        "function": {key: value for key, value in function.items() if value is not None},
    }
