"""Text to token ids and back, by the tokenizer of a route's model. Nothing is generated, so nothing
is reserved or charged."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from apps.core.ids import new_id
from apps.engines.client import ChatPrompt, TextPrompt
from apps.engines.exceptions import EngineClientError
from apps.engines.interface import ReplicaClient
from apps.gateway.demand import outcome_note
from apps.gateway.exceptions import app_error_of
from apps.gateway.moving import MovableLease
from apps.gateway.runtime import gateway_runtime
from apps.rbac.types import Principal

TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest:
    """add_special_tokens: those that the tokenizer adds by itself; None as when the model is
    asked, which is to text and not to a chat, whose template writes its own."""

    model: str
    prompt: ChatPrompt | TextPrompt
    add_special_tokens: bool | None
    with_strings: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeAnswer:
    token_ids: tuple[int, ...]
    strings: tuple[str, ...]
    max_model_len: int


async def tokenize(request: TokenizeRequest, *, principal: Principal) -> TokenizeAnswer:
    """Return the token ids of a prompt, also of one that is longer than the model's context.

    Raises:
        ModelNotFound, LimitExceeded, InvalidRequest, Overloaded, Unavailable: as
            ``admission.start`` does.
    """
    async with _engine_of(request.model, principal=principal) as client:
        found = await client.tokenize(
            request_id=new_id("tok"),
            prompt=request.prompt,
            add_special_tokens=request.add_special_tokens,
            with_strings=request.with_strings,
            timeout_s=TIMEOUT_S,
        )
        return TokenizeAnswer(
            token_ids=found.token_ids,
            strings=found.strings,
            max_model_len=client.info.max_model_len,
        )


async def detokenize(
    *, model: str, token_ids: tuple[int, ...], principal: Principal, is_counted: bool = True
) -> str:
    """Return the text of token ids, special ones included; raises as ``tokenize`` does.

    is_counted: it is a request of its own, not a part of one.
    """
    async with _engine_of(model, principal=principal, is_counted=is_counted) as client:
        return await client.detokenize(
            request_id=new_id("tok"), token_ids=token_ids, timeout_s=TIMEOUT_S
        )


@asynccontextmanager
async def _engine_of(
    model: str, *, principal: Principal, is_counted: bool = True
) -> AsyncIterator[ReplicaClient]:
    runtime = gateway_runtime()
    runtime.check_admitting()
    await runtime.ready()
    await runtime.admit(principal=principal, model=model, end_user=None, is_counted=is_counted)
    movable = MovableLease(runtime.table, runtime.table.lease(model, principal=principal))
    try:
        yield await movable.client(runtime.engines)
    except EngineClientError as error:
        outcome_note(movable.lease.place, error)
        raise app_error_of(error) from error
    finally:
        movable.release()
