"""Answers in the API's wire format. Field names and order are those that clients know."""

from collections.abc import Iterable
from typing import Any, Final, Protocol

import msgspec

from apps.engines.types import AnswerDelta, GenerationResult, TokenLogprob
from apps.gateway.answers import Answer, tool_call_id

MIN_LOGPROB: Final = -9999.0  # for what JSON cannot say: of a token that cannot come

Unset = msgspec.UnsetType


class PromptDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int
    audio_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CallFunction(msgspec.Struct, kw_only=True, omit_defaults=True):
    name: str | None = None
    arguments: str


class Call(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``index`` in pieces only, where ``id``, ``type`` and the name come with the first."""

    index: int | Unset = msgspec.UNSET
    id: str | None = None
    type: str | None = None
    function: CallFunction


class AnswerMessage(msgspec.Struct, kw_only=True):
    """``reasoning`` goes by two names among clients; both are left out where there is none."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    reasoning: str | Unset = msgspec.UNSET
    reasoning_content: str | Unset = msgspec.UNSET
    tool_calls: tuple[Call, ...] | Unset = msgspec.UNSET


class TopLogprob(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: tuple[int, ...]


class ContentLogprob(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: tuple[TopLogprob, ...]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    content: tuple[ContentLogprob, ...]
    refusal: None = None


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage
    system_fingerprint: str


class ChunkDelta(msgspec.Struct, kw_only=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[Call, ...] = ()


class ChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: ChunkDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``usage``: left out unless the client asked for it; then null but for the last chunk."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | Unset | None = msgspec.UNSET


class TextLogprobs(msgspec.Struct, kw_only=True):
    """``text_offset``: where in the answer's text each token begins, in characters."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[dict[str, float] | None, ...]
    text_offset: tuple[int, ...]


class TextChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Whole answers and chunks have the same form here."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[TextChoice, ...]
    usage: Usage | Unset | None = msgspec.UNSET


class ModelCard(msgspec.Struct, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str
    max_model_len: int | None


class ModelList(msgspec.Struct, kw_only=True):
    object: str = "list"
    data: tuple[ModelCard, ...]


CHUNK: Final = "chat.completion.chunk"
TEXT: Final = "text_completion"


class Origin(Protocol):
    """What every answer says of where it is from; a running generation knows."""

    request_id: str
    created: int
    model: str
    system_fingerprint: str


def usage_of(result: GenerationResult) -> Usage:
    return Usage(
        prompt_tokens=result.n_prompt_tokens,
        completion_tokens=result.n_completion_tokens,
        total_tokens=result.n_prompt_tokens + result.n_completion_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=result.n_cached_tokens),
    )


def chat_completion(origin: Origin, *, answers: Iterable[Answer], result: GenerationResult) -> Any:
    return ChatCompletion(
        id=origin.request_id,
        created=origin.created,
        model=origin.model,
        choices=tuple(
            ChatChoice(
                index=index,
                message=_message(answer),
                logprobs=chat_logprobs(answer.logprobs),
                finish_reason=answer.finish_reason or result.finish_reason,
            )
            for index, answer in enumerate(answers)
        ),
        usage=usage_of(result),
        system_fingerprint=origin.system_fingerprint,
    )


def call_pieces(delta: AnswerDelta, *, request_id: str) -> tuple[Call, ...]:
    """Return the calls of a delta; the id comes with a call's first piece."""
    calls = []
    for piece in delta.tool_calls:
        function = CallFunction(name=piece.name, arguments=piece.arguments)
        call = Call(index=piece.index, function=function)
        if piece.name is not None:
            call.type = "function"
            call.id = tool_call_id(request_id, answer=delta.index, call=piece.index)
        calls.append(call)
    return tuple(calls)


def chat_logprobs(entries: Iterable[TokenLogprob]) -> ChatLogprobs | None:
    """Return what a chunk or an answer says of its tokens; None where nothing was asked."""
    content = tuple(
        ContentLogprob(
            token=text_of(each.token),
            logprob=finite(each.logprob),
            bytes=tuple(each.token),
            top_logprobs=tuple(
                TopLogprob(token=text_of(token), logprob=finite(logprob), bytes=tuple(token))
                for token, logprob in each.top
            ),
        )
        for each in entries
    )
    return ChatLogprobs(content=content) if content else None


def text_of(token: bytes) -> str:
    """Return a token as text; what is only a part of a character shows as U+FFFD."""
    return token.decode(errors="replace")


def finite(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)


def _message(answer: Answer) -> AnswerMessage:
    reasoning = answer.reasoning or msgspec.UNSET
    calls = tuple(
        Call(
            id=call.id,
            type="function",
            function=CallFunction(name=call.name, arguments=call.arguments),
        )
        for call in answer.tool_calls
    )
    return AnswerMessage(
        content=answer.text if answer.text or not calls else None,
        reasoning=reasoning,
        reasoning_content=reasoning,
        tool_calls=calls or msgspec.UNSET,
    )
