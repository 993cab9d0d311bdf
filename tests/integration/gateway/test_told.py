"""What clients were told beside the ledger: by kept answers, of every API, whole and streamed."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.utils import timezone

from apps.core.hop import database_hop
from apps.gateway.told import usage_told
from apps.metering.models import UsageRecord
from apps.metering.selectors import ledger_findings, reconciled_since
from apps.metering.types import Tokens
from tests.integration.gateway.conftest import MODEL, chat
from tests.rows import all_of

CHAT = "/v1/chat/completions"
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, chat(n=2, ignore_eos=True)),
    "chat-streamed": (CHAT, chat(ignore_eos=True, **STREAMED)),
    "chat-untold": (CHAT, chat(ignore_eos=True, stream=True)),
    "responses": ("/v1/responses", {"model": MODEL, "input": "Hello", "max_output_tokens": 16}),
    "responses-streamed": (
        "/v1/responses",
        {"model": MODEL, "input": "Hello", "max_output_tokens": 16, "stream": True},
    ),
    "messages": (
        "/v1/messages",
        {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]},
    ),
    "messages-streamed": (
        "/v1/messages",
        {
            "model": MODEL,
            "max_tokens": 8,
            "stream": True,
            "messages": [{"role": "user", "content": "Hello"}],
        },
    ),
    "two-prompts": ("/v1/completions", {"model": MODEL, "prompt": ["a", "b"], "max_tokens": 4}),
}


def told() -> set[tuple[str, ...]]:
    now = timezone.now() + timedelta(seconds=1)
    findings = ledger_findings(since=reconciled_since(now), now=now)
    return {finding.request_ids for finding in findings if finding.kind == "told"}


async def test_usage_is_that_of_the_ledger(http: httpx.AsyncClient) -> None:
    ids = {}
    for name, (path, body) in ASKED.items():
        answer = await http.post(path, json=body, headers={"Idempotency-Key": name})
        assert answer.status_code == 200, answer.text
        ids[name] = answer.headers["x-request-id"]
        usage = usage_told(answer.content)
        if name == "chat-untold":
            assert usage is None
        elif name != "two-prompts":
            row = await all_of(UsageRecord).aget(request_id=ids[name])
            assert usage == Tokens(
                n_prompt=row.n_prompt_tokens, n_completion=row.n_completion_tokens
            ), name
    assert await database_hop(told) == set()
    rows = all_of(UsageRecord).filter(request_id__in=ids.values())
    await rows.aupdate(n_completion_tokens=1)
    compared = set(ids) - {"chat-untold", "two-prompts"}
    assert await database_hop(told) == {(ids[name],) for name in compared}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"usage": null}', b"data: [DONE]\n\n", b'{"usage": {"prompt_tokens": "x"}}'],
)
def test_an_answer_without_usage(body: bytes) -> None:
    assert usage_told(body) is None
