"""What experiments do to a request before it is routed. An experiment never makes a request fail
that would have been answered without it: what cannot be done goes on as its client sent it."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from apps.engines.client import ChatMessage, ChatPrompt
from apps.experiments.types import SYSTEM_MARK, Caller, Enrolment
from apps.gateway.runtime import GatewayRuntime
from apps.gateway.types import JUDGE, GenerationRequest
from apps.rbac.types import Principal

logger = logging.getLogger(__name__)


def enrolment_of(
    runtime: GatewayRuntime, request: GenerationRequest, *, principal: Principal, door: str
) -> Enrolment | None:
    """Return what experiments do to a request; None where it takes part in none."""
    by_route = runtime.experiments.by_route
    if not by_route or door == JUDGE:
        return None
    model = runtime.table.snapshot.named(request.model)
    if model is None or model.name not in by_route:
        return None
    caller = Caller(
        principal=principal,
        door=door,
        end_user=request.end_user or "",
        conversation=request.conversation or "",
        has_turns=isinstance(request.prompt, ChatPrompt),
    )
    try:
        return runtime.experiments.enrol(model.name, caller)
    except Exception:
        logger.exception("A request to %s takes part in no experiment", model.name)
        return None


def templated(request: GenerationRequest, template: str) -> GenerationRequest:
    """Return a conversation with the template as its system message, in which ``{system}`` stands
    for its own; without the mark its own is replaced. A text to continue stays as it is."""
    if not template or not isinstance(request.prompt, ChatPrompt):
        return request
    messages = request.prompt.messages
    n_own = next(
        (place for place, each in enumerate(messages) if each.role != "system"), len(messages)
    )
    own = "\n\n".join(each.content for each in messages[:n_own])
    system = ChatMessage(role="system", content=template.replace(SYSTEM_MARK, own).strip())
    prompt = msgspec.structs.replace(request.prompt, messages=(system, *messages[n_own:]))
    return replace(request, prompt=prompt)


def with_defaults(request: GenerationRequest, defaults: Mapping[str, float]) -> GenerationRequest:
    """Return the request with these values for what its client left unsaid."""
    given = {name: value for name, value in defaults.items() if name in request.unsaid}
    if not given:
        return request
    changes: dict[str, Any] = {}
    if (length_cap := given.pop("max_tokens", None)) is not None:
        changes = {"max_tokens": None, "length_cap": int(length_cap)}
    return replace(request, sampling=msgspec.structs.replace(request.sampling, **given), **changes)
