"""Splits a model's text, as it comes, into reasoning, answer and calls of tools."""

import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Literal

from engine_service.conversation.tool_format import ToolFormat
from engine_service.detokenizer import partial_start
from engine_service.protocol import ToolCallDelta

THINK: Final = "<think>"
THINK_END: Final = "</think>"
_BARE_CALL: Final = '{"name": "'

# off: the model does not mark any. optional: it may begin its answer with it. open: the prompt
# ended inside it.
Reasoning = Literal["off", "optional", "open"]


@dataclass(slots=True)
class Piece:
    """What a piece of text meant."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)


class _State(Enum):
    BEGIN = auto()
    REASONING = auto()
    GAP = auto()  # between reasoning and answer
    ANSWER = auto()
    CALL = auto()
    ARGUMENTS = auto()
    TAIL = auto()


class AnswerParser:
    """Serves one answer. Whatever is not marked is text; nothing but the marks is lost.

    tools: None where there is none to call, and marks of calls are text as any other.
    """

    def __init__(self, *, reasoning: Reasoning = "off", tools: ToolFormat | None = None) -> None:
        self._tools = tools
        self._state = {
            "off": _State.GAP,
            "optional": _State.BEGIN,
            "open": _State.REASONING,
        }[reasoning]
        if reasoning == "off" and (tools is None or tools.trigger):
            self._state = _State.ANSWER
        self._held = ""
        self._n_calls = 0
        self._arguments = _ObjectScanner()
        self._head = None if tools is None else _head_pattern(tools)
        self._trigger = "" if tools is None else tools.trigger

    @property
    def has_called(self) -> bool:
        """Whether the answer has a call so far."""
        return self._n_calls > 0

    def push(self, text: str) -> Piece:
        """Return what is certain by now."""
        if self._state is _State.ANSWER and not self._trigger:
            return Piece(text=text)  # all of it, and nothing is ever held back: most answers
        piece = Piece()
        if text:
            self._held += text
            while self._step(piece):
                pass
        return piece

    def finish(self) -> Piece:
        """Return what was held back; no more text will come."""
        piece = Piece()
        if self._state is _State.REASONING:
            piece.reasoning = self._held
        elif self._state in (_State.BEGIN, _State.GAP, _State.ANSWER):
            piece.text = self._held
        self._held = ""
        return piece

    def _step(self, piece: Piece) -> bool:
        """Take what the state allows; return whether another state may take more."""
        match self._state:
            case _State.BEGIN:
                return self._begin()
            case _State.REASONING:
                return self._reason(piece)
            case _State.GAP:
                return self._gap()
            case _State.ANSWER:
                return self._answer(piece)
            case _State.CALL:
                return self._call(piece)
            case _State.ARGUMENTS:
                return self._take_arguments(piece)
            case _State.TAIL:
                return self._tail()

    def _begin(self) -> bool:
        start = self._held.lstrip()
        if start.startswith(THINK):
            self._held = start[len(THINK) :]
            self._state = _State.REASONING
            return True
        if THINK.startswith(start):
            return False
        self._state = _State.GAP
        return True

    def _reason(self, piece: Piece) -> bool:
        before, mark, after = self._held.partition(THINK_END)
        if mark:
            piece.reasoning += before
            self._held = after
            self._state = _State.GAP
            return True
        cut = partial_start(self._held, THINK_END)
        piece.reasoning += self._held[:cut]
        self._held = self._held[cut:]
        return False

    def _gap(self) -> bool:
        """Drop the white space before an answer; see whether the answer is a bare call."""
        start = self._held.lstrip()
        if not start:
            return False
        if self._tools is not None and not self._tools.trigger:
            if start.startswith(_BARE_CALL):
                self._held, self._state = start, _State.CALL
                return True
            if _BARE_CALL.startswith(start):
                return False
        self._held, self._state = start, _State.ANSWER
        return True

    def _answer(self, piece: Piece) -> bool:
        trigger = self._trigger
        if not trigger:
            piece.text += self._held
            self._held = ""
            return False
        before, mark, after = self._held.partition(trigger)
        if mark:
            piece.text += before.rstrip()
            self._held = trigger + after
            self._state = _State.CALL
            return True
        # White space right before a call is not part of the text, so it waits for what follows.
        cut = partial_start(self._held, trigger)
        cut = len(self._held[:cut].rstrip())
        piece.text += self._held[:cut]
        self._held = self._held[cut:]
        return False

    def _call(self, piece: Piece) -> bool:
        assert self._head is not None
        found = self._head.match(self._held)
        if found is None:
            return False
        piece.tool_calls.append(ToolCallDelta(index=self._n_calls, name=found["name"]))
        self._n_calls += 1
        self._held = self._held[found.end() :]
        self._arguments = _ObjectScanner()
        self._state = _State.ARGUMENTS
        return True

    def _take_arguments(self, piece: Piece) -> bool:
        n_chars = self._arguments.feed(self._held)
        if n_chars:
            arguments, self._held = self._held[:n_chars], self._held[n_chars:]
            piece.tool_calls.append(ToolCallDelta(index=self._n_calls - 1, arguments=arguments))
        if not self._arguments.is_whole:
            return False
        self._state = _State.TAIL
        return True

    def _tail(self) -> bool:
        assert self._tools is not None
        _, mark, after = self._held.partition(self._tools.tail)
        if not mark:
            return False
        self._held = after
        self._state = _State.CALL
        return True


class _ObjectScanner:
    """Finds where a JSON object ends, however it is cut into pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.is_whole = False

    def feed(self, text: str) -> int:
        """Return how many characters of ``text`` belong to the object."""
        for index, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_whole = True
                    return index + 1
        return len(text)


def _head_pattern(tools: ToolFormat) -> re.Pattern[str]:
    before, after = (re.escape(part) for part in tools.head("\0").split('"\\u0000"'))
    return re.compile(rf'\s*{before}"(?P<name>[^"]*)"{after}')
