"""A generation whose answer a judge may score: its text is collected while it passes, and handed on
to be kept once it has ended well. Where no judge is, a request has nothing of this."""

import logging
from collections.abc import Iterator
from typing import Final

from apps.engines.client import ChatMessage, ChatPrompt, Prompt, TextPrompt, TokenPrompt
from apps.engines.types import AnswerDelta
from apps.gateway.attempt import Attempt
from apps.gateway.generation import GenerationStream
from apps.gateway.sample_keeper import FoundAnswer
from apps.gateway.types import CompletionRequest, GenerationRequest
from apps.judging.selectors import is_sampled, judged_text
from apps.judging.types import MAX_ANSWER_CHARS, MAX_TURNS, Turn

logger = logging.getLogger(__name__)

_ROOM: Final = MAX_ANSWER_CHARS + 1  # one more than is kept says that there was more


def has_text(request: GenerationRequest) -> bool:
    """Return whether a judge could read what is asked, and an answer will be shown."""
    if isinstance(request.prompt, TokenPrompt):
        return False
    return not (isinstance(request, CompletionRequest) and request.is_echo_only)


class CollectedAnswer:
    """The text of one answer, reasoning left out, calls of tools as text; no more than is kept."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._left = _ROOM

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def add(self, delta: AnswerDelta) -> None:
        if not self._left:
            return
        if delta.text:
            self._put(delta.text)
        for piece in delta.tool_calls:
            self._put((_call_said(piece.name) if piece.name else "") + piece.arguments)

    def _put(self, text: str) -> None:
        kept = text[: self._left]
        self._pieces.append(kept)
        self._left -= len(kept)


class JudgedStream(GenerationStream):
    """Keeps the first of its answers where a judge takes it, as the client got it: what an engine
    had made before it failed, and nobody was told, is not of it. An answer that is told again from
    a cache comes by no stream, and is in no arm."""

    def _note(self, attempt: Attempt) -> None:
        super()._note(attempt)
        self._collected = CollectedAnswer()

    async def _taken(self, wait_s: float | None) -> AnswerDelta | None:
        delta = await super()._taken(wait_s)
        try:
            if delta is None:
                self._hand_on()
            elif delta.index == 0:
                self._collected.add(delta)
        except Exception:
            logger.exception("The answer %s is not judged", self.request_id)
        return delta

    def _hand_on(self) -> None:
        """Once it has ended well, and its row is settled."""
        if self.result is None or self.result.finish_reason == "abort":
            return
        request_id = self.attempt.reservation.request_id
        judge_ids = tuple(
            judge.judge_id
            for judge in self._attempts.judges
            if is_sampled(request_id, judge_id=judge.judge_id, percent=judge.sample_percent)
        )
        if not judge_ids:
            return
        request = self._attempts.as_sent
        self._runtime.samples.put(
            FoundAnswer(
                judge_ids=judge_ids,
                tenant_id=self.principal.tenant_id,
                request_id=request_id,
                end_user=request.end_user or "",
                text=judged_text(_turns(request.prompt), self._collected.text),
            )
        )


def _turns(prompt: Prompt) -> Iterator[Turn]:
    """The last ones: what was before them is not kept."""
    match prompt:
        case ChatPrompt(messages=messages):
            for message in messages[-MAX_TURNS:]:
                yield Turn(role=message.role, content=_content(message))
        case TextPrompt(text=text):
            yield Turn(role="user", content=text)


def _content(message: ChatMessage) -> str:
    calls = (_call_said(call.name) + call.arguments for call in message.tool_calls)
    return "".join((message.content, *calls))


def _call_said(name: str) -> str:
    """Return how the call of a tool is told, before its arguments."""
    return f"\n[calls {name}] "
