"""Writes what an answer may be as a grammar.

The language is llguidance's own form of Lark
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine_service.conversation.answer_parser import THINK, THINK_END, Reasoning
from engine_service.conversation.tool_format import ToolFormat
from engine_service.errors import RequestError

MAX_SCHEMA_CHARS: Final = 128 * 1024
MAX_SCHEMA_DEPTH: Final = 64
# Free white space would let a model that has nothing to say fill its answer with it.
_LAYOUT: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def answer_grammar(
    *,
    schema: dict[str, Any] | None,
    calls: "Calls | None",
    reasoning: Reasoning,
) -> str:
    """Return the grammar of an answer that obeys ``schema`` or makes ``calls``.

    Only one of them may be None; with both, the model chooses unless ``calls`` are a must.
    """
    rules = ["%llguidance {}"]
    answer = ""
    if schema is not None:
        rules.append(f"content: {_json(schema)}")
        answer = "content"
    if calls is not None:
        rules += _call_rules(calls)
        if calls.is_must:
            answer = "calls"
        elif answer:
            answer = "content | calls"
        else:
            # Free text may hold reasoning too: nothing has to come before it.
            return "\n".join([*rules, *_free_text_rules(calls)]) + "\n"
    thought, more = _thought(reasoning)
    return "\n".join([*rules, *more, f"start: {thought}({answer})"]) + "\n"


def schema_grammar(schema: dict[str, Any]) -> str:
    """Return the grammar of a JSON text that obeys a schema, to see whether there is one."""
    return f"%llguidance {{}}\nstart: {_json(schema)}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """What calls an answer may have: of which functions, by name the schema of their arguments."""

    functions: Mapping[str, dict[str, Any]]
    tool_format: ToolFormat
    is_must: bool
    several: bool


def schema_object(text: str, *, param: str) -> dict[str, Any]:
    """Return a schema that was sent as JSON text; raises RequestError."""
    if not text:
        return {"type": "object"}
    if len(text) > MAX_SCHEMA_CHARS:
        raise _refused(
            f"has {len(text)} characters; at most {MAX_SCHEMA_CHARS} are taken", param=param
        )
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise _refused("is not JSON", param=param) from None
    if not isinstance(schema, dict):
        raise _refused("must be a JSON object", param=param)
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        raise _refused(f"is nested deeper than {MAX_SCHEMA_DEPTH} levels", param=param)
    return schema


def _call_rules(calls: Calls) -> list[str]:
    style = calls.tool_format
    rules = []
    for index, (name, schema) in enumerate(calls.functions.items()):
        head = style.head(name)[len(style.trigger) :]
        rules.append(f"call_{index}: {_text(head)} {_json(schema)} {_text(style.tail)}")
    rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(calls.functions))))
    trigger = _text(style.trigger)
    more = f' ("\\n" {trigger} call)*' if calls.several and style.trigger else ""
    rules.append(f"after_trigger: call{more}")
    rules.append(f"calls: {trigger} after_trigger")
    return rules


def _free_text_rules(calls: Calls) -> list[str]:
    if not calls.tool_format.trigger:
        return ["FREE: /([^{](.|\\n)*)?/", "start: FREE | calls"]
    return [
        "FREE: /(.|\\n)*/",
        f"trigger[lazy]: FREE {_text(calls.tool_format.trigger)}",
        "start: FREE | trigger after_trigger",
    ]


def _thought(reasoning: Reasoning) -> tuple[str, list[str]]:
    """Return how an answer begins that reasoning may come before, and the rules of that."""
    if reasoning == "off":
        return "", []
    rules = [f"thinking[lazy]: /(.|\\n)*/ {_text(THINK_END)}", "GAP: /\\n{0,2}/"]
    if reasoning == "open":
        return "thinking GAP ", rules
    return "thought? ", [*rules, f"thought: {_text(THINK)} thinking GAP"]


def _json(schema: dict[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": _LAYOUT})


def _text(text: str) -> str:
    return json.dumps(text) if text else ""


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _refused(what: str, *, param: str) -> RequestError:
    return RequestError(f"{param} {what}.", code="invalid_schema", param=param)
