"""The answers of a request, as doors tell them: gathered whole, and in the API's words."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from apps.engines.types import AnswerDelta, TokenLogprob

FinishReason = Literal["stop", "length", "tool_calls", "abort"]


@dataclass(slots=True)
class MadeCall:
    """A call of a tool; ``arguments`` is a JSON text, whole unless the answer was cut."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Answer:
    """One answer so far."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[MadeCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Answers:
    """Gathers the answers of one request from their deltas."""

    def __init__(self, request_id: str, *, n: int) -> None:
        self._request_id = request_id
        self.all = [Answer() for _ in range(n)]

    def add(self, delta: AnswerDelta) -> Answer:
        """Take note of a delta; return the answer that it belongs to."""
        answer = self.all[delta.index]
        answer.text += delta.text
        answer.reasoning += delta.reasoning
        answer.logprobs += delta.logprobs
        answer.prompt_logprobs += delta.prompt_logprobs
        for piece in delta.tool_calls:
            if piece.index == len(answer.tool_calls):
                call_id = tool_call_id(self._request_id, answer=delta.index, call=piece.index)
                answer.tool_calls.append(MadeCall(id=call_id, name=piece.name or ""))
            answer.tool_calls[piece.index].arguments += piece.arguments
        answer.finish_reason = finish_reason_of(delta, has_called=bool(answer.tool_calls))
        return answer


class Callers:
    """Knows of a request's answers which have called a tool, where their text is not kept."""

    def __init__(self) -> None:
        self._indices: set[int] = set()

    def finish_reason(self, delta: AnswerDelta) -> FinishReason | None:
        """Take note of a delta; return how its answer ended, if it did."""
        if delta.tool_calls:
            self._indices.add(delta.index)
        return finish_reason_of(delta, has_called=delta.index in self._indices)


def finish_reason_of(delta: AnswerDelta, *, has_called: bool) -> FinishReason | None:
    return "tool_calls" if has_called and delta.finish_reason == "stop" else delta.finish_reason


def tool_call_id(request_id: str, *, answer: int, call: int) -> str:
    """Return the id of a call: the same however often it is asked for."""
    digest = hashlib.blake2b(f"{request_id}/{answer}/{call}".encode(), digest_size=12)
    return f"call_{digest.hexdigest()}"
