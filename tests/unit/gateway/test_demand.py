"""What is said of a request before it is routed, and what is made of how it ended."""

import pytest

from apps.core.limits import UNLIMITED
from apps.deployments.types import ReplicaEndpoint
from apps.engines.client import (
    ChatMessage,
    ChatPrompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolCall,
    ToolUse,
)
from apps.engines.exceptions import (
    EngineDead,
    EngineFault,
    EngineOverloaded,
    EngineRequestError,
    EngineUnresponsive,
)
from apps.gateway.demand import embedding_demand, generation_demand, outcome_note
from apps.gateway.types import ChatRequest, CompletionRequest
from apps.rbac.types import Principal
from apps.routing.balancer import MAX_COUNTED_NEW_TOKENS, Balancer
from apps.routing.breaker import CONSECUTIVE_FAILURES
from apps.routing.prefixes import MAX_PIECES, PIECE_CHARS, PIECE_TOKENS

ENDPOINT = ReplicaEndpoint(
    deployment_id=1,
    deployment_name="d",
    model_version_id=1,
    replica_index=0,
    engine_name="d-0",
    epoch=1,
    socket_path="/run/d-0.sock",
)


def principal(salt: str = "0" * 64) -> Principal:
    return Principal(tenant_id=1, tenant_slug="t", cache_salt=salt, label="t", limits=UNLIMITED)


def completion(
    prompt: TextPrompt | TokenPrompt, *, max_tokens: int | None = 8, n: int = 1
) -> CompletionRequest:
    return CompletionRequest(
        model="m", prompt=prompt, sampling=SamplingParams(n=n), max_tokens=max_tokens
    )


def chat(*messages: ChatMessage, tool_use: ToolUse | None = None) -> ChatRequest:
    return ChatRequest(
        model="m",
        prompt=ChatPrompt(messages=messages, tool_use=tool_use),
        sampling=SamplingParams(),
        max_tokens=8,
    )


def test_token_ids_are_counted() -> None:
    request = completion(TokenPrompt(token_ids=tuple(range(200))), n=2)
    demand = generation_demand(request, principal=principal())
    assert (demand.n_prompt_tokens, demand.n_new_tokens) == (200, 16)
    assert (len(demand.prefix.chain), demand.prefix.n_pieces) == (3, 200 / PIECE_TOKENS)


def test_text_is_estimated() -> None:
    request = completion(TextPrompt(text="x" * 1000), max_tokens=None)
    demand = generation_demand(request, principal=principal())
    assert (demand.n_prompt_tokens, demand.n_new_tokens) == (250, MAX_COUNTED_NEW_TOKENS)
    assert (len(demand.prefix.chain), demand.prefix.n_pieces) == (3, 1000 / PIECE_CHARS)


def test_a_conversation_begins_with_the_one_that_it_continues() -> None:
    system = ChatMessage(role="system", content="s" * 600)
    question = ChatMessage(role="user", content="q" * 600)
    call = ToolCall(id="1", name="f", arguments="{}" + " " * 600)
    answer = ChatMessage(role="assistant", content="", tool_calls=(call,))
    tools = ToolUse(tools=(Tool(name="f", description="d", parameters="{}" + " " * 300),))
    first = generation_demand(chat(system, question, tool_use=tools), principal=principal())
    second = generation_demand(
        chat(system, question, answer, question, tool_use=tools), principal=principal()
    )
    n_first = len(first.prefix.chain)
    assert n_first == (len("fd{}systemuser") + 300 + 1200) // PIECE_CHARS == 5
    assert second.prefix.chain[:n_first] == first.prefix.chain
    assert len(second.prefix.chain) == 10
    without = generation_demand(chat(system, question), principal=principal())
    assert without.prefix.chain[0] != first.prefix.chain[0]  # templates begin with the tools
    other = generation_demand(chat(system, question, tool_use=tools), principal=principal("1" * 64))
    assert not set(other.prefix.chain) & set(first.prefix.chain)


def test_of_a_long_prompt_only_the_beginning_is_looked_at() -> None:
    messages = [ChatMessage(role="user", content="x" * 10_000) for _ in range(20)]
    demand = generation_demand(chat(*messages), principal=principal())
    assert demand.n_prompt_tokens == 20 * 10_004 // 4
    assert len(demand.prefix.chain) == MAX_PIECES
    assert demand.prefix.n_pieces == 20 * 10_004 / PIECE_CHARS


def test_texts_to_embed_are_counted() -> None:
    demand = embedding_demand([TextPrompt(text="x" * 40), TokenPrompt(token_ids=(1, 2, 3))])
    assert demand.n_prompt_tokens == 13
    assert demand.prefix.chain == ()


@pytest.mark.parametrize(
    ("error", "n_to_open"),
    [
        (EngineDead("gone"), 1),
        (EngineUnresponsive("silent"), CONSECUTIVE_FAILURES),
        (EngineFault("broken"), CONSECUTIVE_FAILURES),
        (EngineOverloaded("full", retry_after_s=1.0), None),
        (EngineRequestError("wrong", code="c", param=None), None),
        (RuntimeError("ours"), None),
        (None, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_how_a_replica_did(error: BaseException | None, n_to_open: int | None) -> None:
    balancer = Balancer(clock=lambda: 0.0)
    states = []
    for _ in range(5):
        place = balancer.hold(ENDPOINT)
        outcome_note(place, error)
        place.release()
        states.append(balancer.breaker_state(ENDPOINT))
    n_closed = 5 if n_to_open is None else n_to_open - 1
    assert states == ["closed"] * n_closed + ["open"] * (5 - n_closed)
