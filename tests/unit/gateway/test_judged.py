"""What is collected of an answer for a judge."""

from apps.engines.client import ChatMessage as Message
from apps.engines.client import ChatPrompt, TextPrompt, ToolCall
from apps.engines.types import AnswerDelta, ToolCallDelta
from apps.gateway.judged import CollectedAnswer, _turns
from apps.judging.types import MAX_ANSWER_CHARS, MAX_TURNS, Turn


def collected(*deltas: AnswerDelta) -> str:
    answer = CollectedAnswer()
    for delta in deltas:
        answer.add(delta)
    return answer.text


def test_text_and_no_reasoning() -> None:
    deltas = (AnswerDelta(reasoning="Hm."), AnswerDelta(text="Ye"), AnswerDelta(text="s."))
    assert collected(*deltas) == "Yes."


def test_calls_of_tools() -> None:
    found = collected(
        AnswerDelta(text="Let me see."),
        AnswerDelta(tool_calls=(ToolCallDelta(index=0, name="weather"),)),
        AnswerDelta(tool_calls=(ToolCallDelta(index=0, arguments='{"city": '),)),
        AnswerDelta(tool_calls=(ToolCallDelta(index=0, arguments='"Rome"}'),)),
        AnswerDelta(tool_calls=(ToolCallDelta(index=1, name="time", arguments="{}"),)),
    )
    assert found == 'Let me see.\n[calls weather] {"city": "Rome"}\n[calls time] {}'


def test_no_more_than_is_kept_and_one() -> None:
    found = collected(*[AnswerDelta(text="x" * 1000)] * 1000)
    assert found == "x" * (MAX_ANSWER_CHARS + 1)
    call = ToolCallDelta(index=0, name="weather", arguments="y" * 10**6)
    assert len(collected(AnswerDelta(tool_calls=(call,)))) == MAX_ANSWER_CHARS + 1


def test_a_conversation_with_tools_and_a_text() -> None:
    call = ToolCall(id="c", name="weather", arguments='{"city": "Rome"}')
    prompt = ChatPrompt(
        messages=(
            Message(role="assistant", content="", tool_calls=(call,), reasoning="Hm."),
            Message(role="tool", content="Sun.", tool_call_id="c"),
        )
    )
    assert list(_turns(prompt)) == [
        Turn("assistant", '\n[calls weather] {"city": "Rome"}'),
        Turn("tool", "Sun."),
    ]
    assert list(_turns(TextPrompt(text="Once upon"))) == [Turn("user", "Once upon")]


def test_of_many_turns_the_last() -> None:
    messages = tuple(Message(role="user", content=str(k)) for k in range(5000))
    found = list(_turns(ChatPrompt(messages=messages)))
    assert [turn.content for turn in found] == [str(k) for k in range(5000 - MAX_TURNS, 5000)]
