"""An answer's parts: one after the other, whatever the deltas were cut into."""

import pytest

from apps.engines.types import AnswerDelta, ToolCallDelta
from apps.gateway.answer_parts import AnswerParts, Step


def told(steps: list[Step]) -> list[tuple[str, str, int, str]]:
    return [(step.what, step.part.kind, step.part.index, step.piece) for step in steps]


def test_reasoning_text_and_calls_in_order() -> None:
    parts = AnswerParts("resp-1")
    assert told(parts.add(AnswerDelta(reasoning="hm", n_tokens=3))) == [
        ("begins", "reasoning", 0, ""),
        ("grows", "reasoning", 0, "hm"),
    ]
    steps = parts.add(AnswerDelta(text="So", n_tokens=2))
    assert told(steps)[0] == ("ends", "reasoning", 0, "")
    assert told(steps)[1:] == [("begins", "text", 1, ""), ("grows", "text", 1, "So")]
    calls = (
        ToolCallDelta(index=0, name="f"),
        ToolCallDelta(index=0, arguments="{}"),
        ToolCallDelta(index=1, name="g"),
        ToolCallDelta(index=1, arguments='{"a":'),
    )
    assert [step[:3] for step in told(parts.add(AnswerDelta(tool_calls=calls)))] == [
        ("ends", "text", 1),
        ("begins", "call", 2),
        ("grows", "call", 2),
        ("ends", "call", 2),
        ("begins", "call", 3),
        ("grows", "call", 3),
    ]
    assert told(parts.end("length")) == [("ends", "call", 3, "")]
    assert [part.is_cut for part in parts.all] == [False, False, False, True]
    assert [part.name for part in parts.all] == ["", "", "f", "g"]
    assert len({part.call_id for part in parts.all}) == 3
    assert parts.n_reasoning_tokens == 3


def test_one_delta_and_many_make_the_same_parts() -> None:
    deltas = [AnswerDelta(reasoning="a"), AnswerDelta(text="b"), AnswerDelta(text="c")]
    one, many = AnswerParts("r"), AnswerParts("r")
    one.add(deltas[0].joined(deltas[1]).joined(deltas[2]))
    for delta in deltas:
        many.add(delta)
    assert one.end("stop") and many.end("stop")
    assert one.all == many.all
    assert [part.text for part in one.all] == ["a", "bc"]


@pytest.mark.parametrize(
    ("arguments", "is_cut"), [('{"a":1}', False), ('{"a":1', True), ("", True)]
)
def test_a_call_that_was_whole_when_the_answer_was_cut(arguments: str, is_cut: bool) -> None:
    parts = AnswerParts("r")
    parts.add(
        AnswerDelta(
            tool_calls=(
                ToolCallDelta(index=0, name="f"),
                ToolCallDelta(index=0, arguments=arguments),
            )
        )
    )
    parts.end("length")
    assert parts.all[0].is_cut == is_cut


def test_an_answer_without_anything_has_no_parts() -> None:
    parts = AnswerParts("r")
    assert parts.add(AnswerDelta(n_tokens=1, finish_reason="stop")) == []
    assert parts.end("stop") == []
    assert parts.all == []


def test_the_stop_string_is_kept() -> None:
    parts = AnswerParts("r")
    parts.add(AnswerDelta(text="a").joined(AnswerDelta(finish_reason="stop", stop="END")))
    assert (parts.finish_reason, parts.stop) == ("stop", "END")
