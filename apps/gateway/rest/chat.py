"""``POST /v1/chat/completions``."""

from typing import ClassVar

import msgspec
from django.http.response import HttpResponseBase

from apps.core.exceptions import AppError
from apps.engines.types import AnswerDelta, GenerationResult
from apps.gateway.answers import Answers, Callers
from apps.gateway.chat_schemas import ChatBody, chat_request
from apps.gateway.merging import Stream
from apps.gateway.rest import wire
from apps.gateway.rest.generation import GenerationView
from apps.gateway.rest.operations import Operation
from apps.gateway.rest.streaming import DONE, event


class ChatCompletionView(GenerationView):
    decoder: ClassVar = msgspec.json.Decoder(ChatBody)
    operations: ClassVar = {
        "post": Operation(
            id="createChatCompletion",
            summary="Continue a conversation",
            tag="Chat",
            answer=wire.ChatCompletion,
            events=(wire.ChatCompletionChunk,),
        ),
    }

    async def answer(self, body: ChatBody) -> HttpResponseBase:
        chat = chat_request(body)
        stream = await self.start(chat)
        if chat.stream:
            return self.streamed(stream, ChatChunks(stream, include_usage=chat.include_usage))
        answers = Answers(stream.request_id, n=stream.n_answers)
        result = await self.gathered(stream, answers)
        return self.whole(stream, wire.chat_completion(stream, answers=answers.all, result=result))


class ChatChunks:
    """Its role is an answer's first chunk; how it ended, its last."""

    def __init__(self, stream: Stream, *, include_usage: bool) -> None:
        self._stream = stream
        self._usage: msgspec.UnsetType | None = None if include_usage else msgspec.UNSET
        self._callers = Callers()

    def start(self) -> bytes:
        first = wire.ChunkDelta(role="assistant", content="")
        return b"".join(
            self._choice(wire.ChunkChoice(index=index, delta=first))
            for index in range(self._stream.n_answers)
        )

    def delta(self, delta: AnswerDelta) -> bytes:
        chunk = b""
        if delta.text or delta.reasoning or delta.tool_calls or delta.logprobs:
            chunk = self._choice(
                wire.ChunkChoice(
                    index=delta.index,
                    delta=self._content(delta),
                    logprobs=wire.chat_logprobs(delta.logprobs),
                )
            )
        finish_reason = self._callers.finish_reason(delta)
        if finish_reason is None:
            return chunk
        return chunk + self._choice(
            wire.ChunkChoice(
                index=delta.index, delta=wire.ChunkDelta(), finish_reason=finish_reason
            )
        )

    def end(self, result: GenerationResult) -> bytes:
        if self._usage is msgspec.UNSET:
            return DONE
        return self._chunk((), usage=wire.usage_of(result)) + DONE

    def error(self, error: AppError) -> bytes:
        return event(error.body()) + DONE

    def _content(self, delta: AnswerDelta) -> wire.ChunkDelta:
        return wire.ChunkDelta(
            content=delta.text or None,
            reasoning=delta.reasoning or None,
            reasoning_content=delta.reasoning or None,
            tool_calls=wire.call_pieces(delta, request_id=self._stream.request_id),
        )

    def _choice(self, choice: wire.ChunkChoice) -> bytes:
        return self._chunk((choice,), usage=self._usage)

    def _chunk(
        self,
        choices: tuple[wire.ChunkChoice, ...],
        *,
        usage: wire.Usage | msgspec.UnsetType | None,
    ) -> bytes:
        return event(
            wire.ChatCompletionChunk(
                id=self._stream.request_id,
                object=wire.CHUNK,
                created=self._stream.created,
                model=self._stream.model,
                system_fingerprint=self._stream.system_fingerprint,
                choices=choices,
                usage=usage,
            )
        )
