"""``POST /v1/completions``."""

from collections.abc import Sequence
from typing import ClassVar

import msgspec
from django.http.response import HttpResponseBase

from apps.core.exceptions import AppError
from apps.engines.client import TextPrompt
from apps.engines.types import AnswerDelta, GenerationResult, TokenLogprob
from apps.gateway.answers import Answers
from apps.gateway.merging import MergedStream, Stream
from apps.gateway.rest import wire
from apps.gateway.rest.completions_wire import TextLogprobsWriter, joined
from apps.gateway.rest.generation import GenerationView
from apps.gateway.rest.operations import Operation
from apps.gateway.rest.streaming import DONE, event
from apps.gateway.reuse import SingleStream
from apps.gateway.schemas import CompletionBody, completion_requests
from apps.gateway.tokenizing import detokenize
from apps.gateway.types import CompletionRequest
from apps.rbac.types import Principal


class CompletionView(GenerationView):
    decoder: ClassVar = msgspec.json.Decoder(CompletionBody)
    operations: ClassVar = {
        "post": Operation(
            id="createCompletion",
            summary="Continue a text",
            tag="Completions",
            answer=wire.Completion,
            events=(wire.Completion,),
        ),
    }

    async def answer(self, body: CompletionBody) -> HttpResponseBase:
        requests = completion_requests(body)
        prompts = [await _echoed(request, principal=self.principal) for request in requests]
        stream = await self._start_all(requests)
        chunks = TextChunks(stream, requests, prompts=prompts)
        if requests[0].stream:
            return self.streamed(stream, chunks)
        answers = Answers(stream.request_id, n=stream.n_answers)
        result = await self.gathered(stream, answers)
        return self.whole(stream, chunks.completion(answers, result))

    async def _start_all(self, requests: Sequence[CompletionRequest]) -> Stream:
        if len(requests) == 1:
            return await self.start(requests[0])
        streams: list[SingleStream] = []
        try:
            for request in requests:
                streams.append(await self.start(request))
        except BaseException:
            for stream in streams:
                await stream.aclose()
            raise
        return MergedStream(streams)


class TextChunks:
    """Words the answers, whole and in pieces. An echoed prompt begins its answers."""

    def __init__(
        self, stream: Stream, requests: Sequence[CompletionRequest], *, prompts: Sequence[str]
    ) -> None:
        first = requests[0]
        self._stream = stream
        self._first = first
        self._include_usage = first.include_usage
        n_each = stream.n_answers // len(requests)
        self._prompts = [prompt for prompt in prompts for _ in range(n_each)]
        self._writers = [TextLogprobsWriter() for _ in self._prompts]
        self._begun: set[int] = set()
        self._scores: dict[int, list[TokenLogprob]] = {}

    def start(self) -> bytes:
        return b""

    def delta(self, delta: AnswerDelta) -> bytes:
        # What is said of a prompt comes in parts, all before its answers.
        self._scores.setdefault(delta.index, []).extend(delta.prompt_logprobs)
        if not (delta.text or delta.logprobs or delta.finish_reason):
            return b""
        return event(self._body((self._choice(delta),), usage=self._no_usage))

    def end(self, result: GenerationResult) -> bytes:
        if not self._include_usage:
            return DONE
        return event(self._body((), usage=wire.usage_of(result))) + DONE

    def error(self, error: AppError) -> bytes:
        return event(error.body()) + DONE

    def completion(self, answers: Answers, result: GenerationResult) -> wire.Completion:
        """Return the whole answer."""
        self._scores = {index: each.prompt_logprobs for index, each in enumerate(answers.all)}
        choices = tuple(
            self._choice(
                AnswerDelta(
                    index=index,
                    text=answer.text,
                    logprobs=tuple(answer.logprobs),
                    finish_reason="length" if answer.finish_reason == "length" else "stop",
                )
            )
            for index, answer in enumerate(answers.all)
        )
        return self._body(choices, usage=wire.usage_of(result))

    @property
    def _no_usage(self) -> msgspec.UnsetType | None:
        return None if self._include_usage else msgspec.UNSET

    def _leader(self, index: int) -> int:
        """Return the answer with whose deltas the logprobs of the same prompt came."""
        return index - index % self._first.sampling.n

    def _choice(self, delta: AnswerDelta) -> wire.TextChoice:
        text, logprobs = "", None
        writer = self._writers[delta.index]
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            text = self._prompts[delta.index]
            if self._first.echo and self._first.sampling.prompt_logprobs is not None:
                logprobs = writer.write_prompt(text, self._scores[self._leader(delta.index)])
        if not self._first.is_echo_only:
            text += delta.text
            logprobs = joined(logprobs, writer.write(delta.logprobs))
        return wire.TextChoice(
            index=delta.index, text=text, logprobs=logprobs, finish_reason=delta.finish_reason
        )

    def _body(
        self,
        choices: tuple[wire.TextChoice, ...],
        *,
        usage: wire.Usage | msgspec.UnsetType | None,
    ) -> wire.Completion:
        return wire.Completion(
            id=self._stream.request_id,
            object=wire.TEXT,
            created=self._stream.created,
            model=self._stream.model,
            system_fingerprint=self._stream.system_fingerprint,
            choices=choices,
            usage=usage,
        )


async def _echoed(request: CompletionRequest, *, principal: Principal) -> str:
    """Return how the answers of a request begin."""
    if not request.echo:
        return ""
    if isinstance(request.prompt, TextPrompt):
        return request.prompt.text
    return await detokenize(
        model=request.model,
        token_ids=request.prompt.token_ids,
        principal=principal,
        is_counted=False,
    )
