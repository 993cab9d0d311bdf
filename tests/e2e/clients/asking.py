"""How these tests ask: short answers, greedy unless they say otherwise."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

Messages = str | Sequence[Mapping[str, Any]]

# In the client's own words; everything else that the server takes goes by ``extra_body``.
_EXTENSIONS = frozenset(
    {"top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos"}
)


def fields(model: str, ask: Messages, **more: Any) -> dict[str, Any]:
    """Return the arguments of ``chat.completions.create``."""
    messages = [{"role": "user", "content": ask}] if isinstance(ask, str) else list(ask)
    found: dict[str, Any] = {"model": model, "messages": messages, "temperature": 0, **more}
    if "max_completion_tokens" not in found:
        found.setdefault("max_tokens", 8)
    extra = {name: found.pop(name) for name in _EXTENSIONS & set(found)}
    return found | ({"extra_body": extra} if extra else {})


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks the chat model through the synchronous client."""

    client: openai.OpenAI
    model: str

    def chat(self, ask: Messages, **more: Any) -> ChatCompletion:
        answer = self.client.chat.completions.create(**fields(self.model, ask, **more))
        assert isinstance(answer, ChatCompletion)
        return answer

    def text(self, ask: Messages, **more: Any) -> str:
        return self.chat(ask, **more).choices[0].message.content or ""

    def chunks(self, ask: Messages, **more: Any) -> list[ChatCompletionChunk]:
        create: Callable[..., Iterable[ChatCompletionChunk]] = self.client.chat.completions.create
        return list(create(**fields(self.model, ask, **more), stream=True))

    def refusal(self, ask: Messages = "Hi", **more: Any) -> openai.APIStatusError:
        """Return the error that it must end in."""
        with pytest.raises(openai.APIStatusError) as refused:
            self.chat(ask, **more)
        return refused.value

    def token_ids(self, text: str) -> list[int]:
        """Return the ids of a text by itself, as the server's tokenizer has them."""
        answer = httpx.post(
            str(self.client.base_url.copy_with(path="/tokenize")),
            json={"model": self.model, "prompt": text, "add_special_tokens": False},
            headers={"Authorization": f"Bearer {self.client.api_key}"},
        )
        assert answer.status_code == 200, answer.text
        ids: list[int] = answer.json()["tokens"]
        return ids


def texts_of(chunks: Iterable[ChatCompletionChunk]) -> dict[int, str]:
    """Join the pieces of each answer."""
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return texts


def ends_of(chunks: Iterable[ChatCompletionChunk]) -> dict[int, str]:
    """Return how each answer ended; that it ended once is seen here."""
    ends: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                assert choice.index not in ends
                ends[choice.index] = choice.finish_reason
    return ends
