"""What a model's text means must not depend on how it was cut into pieces."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_service.conversation.answer_parser import AnswerParser, Reasoning
from engine_service.conversation.tool_format import HERMES, LLAMA3, ToolFormat

ARGUMENTS = '{"a": "} \\" ]", "b": [{}]}'
CALL = HERMES.write(name="f", arguments=ARGUMENTS)


@dataclass
class Read:
    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)


def read(
    pieces: list[str], *, reasoning: Reasoning = "off", tools: ToolFormat | None = None
) -> Read:
    parser = AnswerParser(reasoning=reasoning, tools=tools)
    found = Read()
    for piece in [*(parser.push(text) for text in pieces), parser.finish()]:
        found.text += piece.text
        found.reasoning += piece.reasoning
        for delta in piece.tool_calls:
            if delta.name is not None:
                assert delta.index == len(found.calls)
                found.calls.append((delta.name, ""))
            name, arguments = found.calls[delta.index]
            found.calls[delta.index] = (name, arguments + delta.arguments)
    return found


CASES = [
    ("plain text", "off", None, Read(text="plain text")),
    ("<think>a</think>b", "off", None, Read(text="<think>a</think>b")),
    ("<think>a</think>\n\nb", "optional", None, Read(text="b", reasoning="a")),
    ("b <think>", "optional", None, Read(text="b <think>")),
    ("a</think>\nb", "open", None, Read(text="b", reasoning="a")),
    ("never done", "open", None, Read(reasoning="never done")),
    ("cut </thi", "open", None, Read(reasoning="cut </thi")),
    ("<thi", "optional", None, Read(text="<thi")),
    (CALL, "off", None, Read(text=CALL)),
    (CALL, "off", HERMES, Read(calls=[("f", ARGUMENTS)])),
    (
        f"Let me see.\n{CALL}\n{CALL}",
        "off",
        HERMES,
        Read(text="Let me see.", calls=[("f", ARGUMENTS)] * 2),
    ),
    (
        f"<think>x</think>{CALL}",
        "optional",
        HERMES,
        Read(reasoning="x", calls=[("f", ARGUMENTS)]),
    ),
    ('<tool_call>\n{"name": "f", "arg', "off", HERMES, Read()),
    (
        '<tool_call>\n{"name": "f", "arguments": {"a": "cu',
        "off",
        HERMES,
        Read(calls=[("f", '{"a": "cu')]),
    ),
    ("no call <tool", "off", HERMES, Read(text="no call <tool")),
    (LLAMA3.write(name="f", arguments="{}"), "off", LLAMA3, Read(calls=[("f", "{}")])),
    ('{"other": 1}', "off", LLAMA3, Read(text='{"other": 1}')),
    ('{"na', "off", LLAMA3, Read(text='{"na')),
    ("text", "off", LLAMA3, Read(text="text")),
]


@pytest.mark.parametrize(("text", "reasoning", "tools", "expected"), CASES)
def test_whole_and_by_character(
    text: str, reasoning: Reasoning, tools: ToolFormat | None, expected: Read
) -> None:
    assert read([text], reasoning=reasoning, tools=tools) == expected
    assert read(list(text), reasoning=reasoning, tools=tools) == expected


@given(st.data(), st.sampled_from(CASES))
def test_however_it_is_cut(
    data: st.DataObject, case: tuple[str, Reasoning, ToolFormat | None, Read]
) -> None:
    text, reasoning, tools, expected = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(pieces, reasoning=reasoning, tools=tools) == expected


def test_text_comes_as_soon_as_it_is_certain() -> None:
    parser = AnswerParser(tools=HERMES)
    assert parser.push("Hello <").text == "Hello"
    assert parser.push("b>").text == " <b>"


def test_arguments_come_while_they_are_made() -> None:
    parser = AnswerParser(tools=HERMES)
    parser.push('<tool_call>\n{"name": "f", "arguments": ')
    assert [each.arguments for each in parser.push('{"a": ').tool_calls] == ['{"a": ']
