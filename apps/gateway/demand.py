"""What a request will ask of a replica, said before it is routed, and how the replica then did."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from apps.engines.client import ChatPrompt, EmbedInput, TextPrompt, TokenPrompt
from apps.engines.exceptions import EngineDead, EngineFault, EngineUnresponsive
from apps.gateway.types import GenerationRequest
from apps.rbac.types import Principal
from apps.routing.selectors import (
    MAX_PREFIX_CHARS,
    Demand,
    Place,
    counted_new_tokens,
    prompt_prefix,
)

CHARS_PER_TOKEN: Final = 4  # of English, roughly; the engine says the number soon after


def generation_demand(request: GenerationRequest, *, principal: Principal) -> Demand:
    """Return what is known of a request before its prompt is tokenized."""
    prompt, salt = request.prompt, principal.cache_salt
    if isinstance(prompt, TokenPrompt):
        n_prompt_tokens = len(prompt.token_ids)
        prefix = prompt_prefix(prompt.token_ids, salt=salt)
    else:
        text, n_chars = _beginning(_parts(prompt))
        n_prompt_tokens = n_chars // CHARS_PER_TOKEN
        prefix = prompt_prefix(text, salt=salt, length=n_chars)
    return Demand(
        n_prompt_tokens=n_prompt_tokens,
        n_new_tokens=counted_new_tokens(request.max_tokens, n_answers=request.sampling.n),
        prefix=prefix,
    )


def embedding_demand(inputs: Sequence[EmbedInput]) -> Demand:
    """Return what texts to be embedded ask for: each is read whole, whatever it begins with."""
    n_tokens = sum(
        len(each.token_ids) if isinstance(each, TokenPrompt) else len(each.text) // CHARS_PER_TOKEN
        for each in inputs
    )
    return Demand(n_prompt_tokens=n_tokens)


def outcome_note(place: Place, error: BaseException | None) -> None:
    """Tell the balancer how a replica did. None: well. What is the client's fault, or ours, or says
    that the replica is busy, says nothing of whether it works."""
    match error:
        case None:
            place.succeeded()
        case EngineUnresponsive() | EngineFault():
            place.failed()
        case EngineDead():
            place.failed(is_gone=True)


def _parts(prompt: ChatPrompt | TextPrompt) -> Iterator[str]:
    """Yield the texts of a prompt in the order in which templates write them, by and large."""
    if isinstance(prompt, TextPrompt):
        yield prompt.text
        return
    for tool in prompt.tool_use.tools if prompt.tool_use is not None else ():
        yield from (tool.name, tool.description or "", tool.parameters)
    for message in prompt.messages:
        yield from (message.role, message.content)
        for call in message.tool_calls:
            yield from (call.name, call.arguments)


def _beginning(parts: Iterable[str]) -> tuple[str, int]:
    """Return as much of the joined texts as prefixes are made of, and how long they are in all."""
    kept, n_chars = [], 0
    for part in parts:
        if n_chars < MAX_PREFIX_CHARS:
            kept.append(part[: MAX_PREFIX_CHARS - n_chars])
        n_chars += len(part)
    return "".join(kept), n_chars
