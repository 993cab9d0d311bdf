"""What one tenant has in the prefix cache tells another nothing: not by a count, not by a hit."""

import httpx

from apps.core.hop import database_hop
from apps.metering.models import UsageRecord
from tests.factories import ApiTokenFactory
from tests.integration.gateway.conftest import chat
from tests.rows import all_of

CHAT = "/v1/chat/completions"
PROMPT = "A secret that is long enough to fill several blocks of the cache. " * 3


async def n_cached(http: httpx.AsyncClient, secret: str) -> int:
    headers = {"Authorization": f"Bearer {secret}"}
    answer = await http.post(CHAT, json=chat(PROMPT, max_tokens=1), headers=headers)
    usage = answer.json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


async def test_a_tenant_hits_its_own_prefixes_alone(http: httpx.AsyncClient) -> None:
    owner, stranger = [await database_hop(ApiTokenFactory) for _ in range(2)]
    colleague = await database_hop(lambda: ApiTokenFactory(tenant=owner.tenant))
    assert await n_cached(http, owner.secret) == 0
    own = await n_cached(http, owner.secret)
    assert own > 100
    # With the owner's prompt warm, a stranger's first try is as cold as any.
    assert await n_cached(http, stranger.secret) == 0
    assert await n_cached(http, stranger.secret) == own
    assert await n_cached(http, colleague.secret) == own
    rows = await database_hop(
        lambda: list(all_of(UsageRecord).order_by("id").values_list("n_cached_tokens", flat=True))
    )
    assert rows == [0, own, 0, own, own]
