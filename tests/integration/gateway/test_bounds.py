"""What is too much is refused at the door: no engine is asked, and nobody waits for it."""

from typing import Any

import httpx
import pytest

from tests.integration.gateway.conftest import MODEL, chat


@pytest.mark.parametrize(
    ("name", "most", "too_many"),
    [
        ("stop_token_ids", [1] * 64, [1] * 65),
        ("logit_bias", {"1": 1}, {str(token_id): 1 for token_id in range(1025)}),
    ],
)
async def test_lists_over_the_bounds_of_engines(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, name: str, most: Any, too_many: Any
) -> None:
    completion = {"model": MODEL, "prompt": "Hi", "max_tokens": 2}
    ways = (("/v1/chat/completions", chat()), ("/v1/completions", completion))
    for path, body in ways:
        assert (await http.post(path, json={**body, name: most})).status_code == 200

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("an engine was asked")

    monkeypatch.setattr("apps.gateway.admission._prepare", fail)
    for path, body in ways:
        answer = await http.post(path, json={**body, name: too_many})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, name)
        assert error["code"] == "invalid_value"
