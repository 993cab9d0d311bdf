"""What every door hands to admission: a parsed request, whatever wire it came over."""

from dataclasses import dataclass
from typing import ClassVar

from apps.engines.client import ChatPrompt, SamplingParams, TextPrompt, TokenPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation to continue.

    max_tokens: None means as much as the context leaves. max_tokens_param: the name under which
    the client gave it, for errors about it.
    """

    endpoint: ClassVar[str] = "chat.completions"
    id_prefix: ClassVar[str] = "chatcmpl"

    model: str
    prompt: ChatPrompt
    sampling: SamplingParams
    max_tokens: int | None
    max_tokens_param: str = "max_tokens"
    stream: bool = False
    include_usage: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A text to continue, as a string or as token ids."""

    endpoint: ClassVar[str] = "completions"
    id_prefix: ClassVar[str] = "cmpl"

    model: str
    prompt: TextPrompt | TokenPrompt
    sampling: SamplingParams
    max_tokens: int | None
    max_tokens_param: str = "max_tokens"
    stream: bool = False
    include_usage: bool = False


GenerationRequest = ChatRequest | CompletionRequest
