"""Answers in the API's wire format. Field names and order are those that clients know."""

from typing import Any, Final

import msgspec

from apps.engines.types import GenerationResult
from apps.gateway.generation import GenerationStream


class PromptDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int
    audio_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class AnswerMessage(msgspec.Struct, kw_only=True):
    role: str = "assistant"
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int = 0
    message: AnswerMessage
    logprobs: None = None
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


class ChunkChoice(msgspec.Struct, kw_only=True):
    index: int = 0
    delta: ChunkDelta
    logprobs: None = None
    finish_reason: str | None = None


class ChatCompletionChunk(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``usage``: left out unless the client asked for it; then null but for the last chunk."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class TextChoice(msgspec.Struct, kw_only=True):
    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Whole answers and chunks have the same form here."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[TextChoice, ...]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class ModelCard(msgspec.Struct, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str


class ModelList(msgspec.Struct, kw_only=True):
    object: str = "list"
    data: tuple[ModelCard, ...]


CHUNK: Final = "chat.completion.chunk"
TEXT: Final = "text_completion"


def usage_of(result: GenerationResult) -> Usage:
    return Usage(
        prompt_tokens=result.n_prompt_tokens,
        completion_tokens=result.n_completion_tokens,
        total_tokens=result.n_prompt_tokens + result.n_completion_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=result.n_cached_tokens),
    )


def chat_completion(stream: GenerationStream, *, text: str, result: GenerationResult) -> Any:
    choice = ChatChoice(message=AnswerMessage(content=text), finish_reason=result.finish_reason)
    return ChatCompletion(
        id=stream.request_id,
        created=stream.created,
        model=stream.model,
        choices=(choice,),
        usage=usage_of(result),
        system_fingerprint=stream.system_fingerprint,
    )


def completion(stream: GenerationStream, *, text: str, result: GenerationResult) -> Any:
    return Completion(
        id=stream.request_id,
        object=TEXT,
        created=stream.created,
        model=stream.model,
        system_fingerprint=stream.system_fingerprint,
        choices=(TextChoice(text=text, finish_reason=result.finish_reason),),
        usage=usage_of(result),
    )
