"""An answer as the ordered parts that some APIs tell it in: reasoning, text, calls of tools."""

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from apps.engines.types import AnswerDelta, FinishReason
from apps.gateway.answers import tool_call_id

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Part:
    """``text``: of a call its arguments. is_cut: the answer ended inside it."""

    kind: Kind
    index: int
    text: str = ""
    call_id: str = ""
    name: str = ""
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """What happened to a part; of one that grows, by which piece."""

    what: Literal["begins", "grows", "ends"]
    part: Part
    piece: str = ""


@dataclass(slots=True)
class AnswerParts:
    """Follows the one answer of a request. One part has ended before the next begins.

    n_reasoning_tokens: of the deltas that brought reasoning; where the one that ended it brought
    more, that counts as well.
    """

    request_id: str
    all: list[Part] = field(default_factory=list)
    n_reasoning_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop: str | None = None
    _n_calls: int = 0
    _is_open: bool = False

    @property
    def has_called(self) -> bool:
        return self._n_calls > 0

    def add(self, delta: AnswerDelta) -> list[Step]:
        """Take note of a delta; return what it changed, in order."""
        steps: list[Step] = []
        if delta.reasoning:
            steps += self._grow("reasoning", delta.reasoning)
            self.n_reasoning_tokens += delta.n_tokens
        if delta.text:
            steps += self._grow("text", delta.text)
        for piece in delta.tool_calls:
            if piece.index == self._n_calls:
                call_id = tool_call_id(self.request_id, answer=delta.index, call=piece.index)
                steps += self._begin("call", call_id=call_id, name=piece.name or "")
                self._n_calls += 1
            if piece.arguments:
                steps += self._grow("call", piece.arguments)
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.stop = delta.stop or self.stop
        return steps

    def end(self, finish_reason: FinishReason) -> list[Step]:
        """Take note of the end; return what it changed."""
        self.finish_reason = finish_reason
        if self._is_open and finish_reason != "stop":
            part = self.all[-1]
            part.is_cut = part.kind != "call" or not _is_object(part.text)
        return self._end()

    def _grow(self, kind: Kind, piece: str) -> list[Step]:
        steps: list[Step] = []
        if not self._is_open or self.all[-1].kind != kind:
            steps = self._begin(kind)
        part = self.all[-1]
        part.text += piece
        return [*steps, Step("grows", part, piece)]

    def _begin(self, kind: Kind, *, call_id: str = "", name: str = "") -> list[Step]:
        steps = self._end()
        part = Part(kind=kind, index=len(self.all), call_id=call_id, name=name)
        self.all.append(part)
        self._is_open = True
        return [*steps, Step("begins", part)]

    def _end(self) -> list[Step]:
        if not self._is_open:
            return []
        self._is_open = False
        return [Step("ends", self.all[-1])]


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except msgspec.DecodeError:
        return False
