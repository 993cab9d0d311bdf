"""Does the ledger agree with what clients were told? Answers that came with an ``Idempotency-Key``
are kept as they were sent, with their usage: a view of the client's own, for a day."""

from collections.abc import Iterator
from typing import Final

import msgspec

from apps.gateway.models import IdempotentRequest
from apps.metering.selectors import tokens_of
from apps.metering.services import check_register
from apps.metering.types import Finding, FindingKind, Tokens, Window

# A completions request of several prompts has several rows and one usage.
_ENDPOINTS: Final = frozenset({"chat.completions", "responses", "messages"})
_AT_A_TIME: Final = 50
_DATA: Final = b"data: "


class _Usage(msgspec.Struct):
    """In the words of any of the APIs."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> Tokens:
        if self.prompt_tokens is not None:
            return Tokens(n_prompt=self.prompt_tokens, n_completion=self.completion_tokens or 0)
        n_prompt = self.input_tokens + self.cache_read_input_tokens
        return Tokens(n_prompt=n_prompt, n_completion=self.output_tokens)


class _Body(msgspec.Struct):
    """An answer, or an event of one; response: what an event of a stream is about."""

    usage: _Usage | None = None
    response: "_Body | None" = None


_decoder = msgspec.json.Decoder(_Body)


def register() -> None:
    check_register(told)


def told(window: Window) -> Iterator[Finding]:
    """Kept answers that say another usage than their row."""
    n_found = 0
    kept = IdempotentRequest.objects.filter(
        state=IdempotentRequest.State.KEPT, status=200, created_at__gte=window.since
    ).order_by("pk")
    last = 0
    while part := list(kept.filter(pk__gt=last)[:_AT_A_TIME]):
        last = part[-1].pk
        usages = {
            str(answer.headers.get("X-Request-Id")): usage
            for answer in part
            if (usage := usage_told(bytes(answer.body))) is not None
        }
        for request_id, tokens in tokens_of(usages, endpoints=_ENDPOINTS).items():
            if tokens != usages[request_id]:
                n_found += 1
                if n_found > window.limit:
                    return
                yield _finding(request_id, told=usages[request_id], tokens=tokens)


def usage_told(body: bytes) -> Tokens | None:
    """Return the last usage in an answer, whole or as events; None where it says none."""
    parts = [body] if body.startswith(b"{") else _events(body)
    for part in parts:
        try:
            found = _decoder.decode(part)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        usage = found.usage or (found.response and found.response.usage)
        if usage:
            return usage.tokens
    return None


def _events(body: bytes) -> Iterator[bytes]:
    """The last first."""
    for line in reversed(body.splitlines()):
        if line.startswith(_DATA):
            yield line.removeprefix(_DATA)


def _finding(request_id: str, *, told: Tokens, tokens: Tokens) -> Finding:
    return Finding(
        kind=FindingKind.TOLD,
        said=f"Its client was told {told.n_prompt} tokens of prompt and {told.n_completion} of "
        f"answer; its row says {tokens.n_prompt} and {tokens.n_completion}.",
        request_ids=(request_id,),
        subject=request_id,
    )
