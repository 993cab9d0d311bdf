"""What programs that people have send beside the plain request: Open WebUI, aider, Continue,
health checks, proxies. Each is answered, or refused with words that say what to change."""

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def http(product: RunningProduct) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {product.api_token}"}
    with httpx.Client(base_url=product.origin, headers=headers, timeout=60) as http:
        yield http


def body(product: RunningProduct, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    return {"model": product.model, "messages": turns, "max_tokens": 8, "temperature": 0, **more}


def refused(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def test_a_chat_window(http: httpx.Client, product: RunningProduct) -> None:
    """It lists the models, then streams with the usage; its own ids stay with it."""
    cards = http.get("/v1/models").json()
    assert cards["object"] == "list" and product.model in {card["id"] for card in cards["data"]}
    sent = body(product, stream=True, stream_options={"include_usage": True})
    answer = http.post(CHAT, json=sent)
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    usage = json.loads(events[-2])["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert "cached_tokens" in usage["prompt_tokens_details"]
    for name in ("session_id", "chat_id", "options", "keep_alive"):
        answer = http.post(CHAT, json=body(product, **{name: "a"}))
        assert refused(answer) == (400, "unknown_parameter", name)


def test_headers_that_say_nothing_here(http: httpx.Client, product: RunningProduct) -> None:
    plain = http.post(CHAT, json=body(product)).json()["choices"]
    headers = {
        "OpenAI-Organization": "org-1",
        "OpenAI-Project": "proj-1",
        "OpenAI-Beta": "assistants=v2",
        "HTTP-Referer": "https://example.org",
        "X-Title": "an editor",
        "X-Stainless-Retry-Count": "1",
        "Content-Type": "application/json; charset=utf-8",
        "Accept": "text/event-stream",
    }
    answer = http.post(f"{CHAT}?api-version=1", content=json.dumps(body(product)), headers=headers)
    assert answer.status_code == 200
    assert answer.json()["choices"] == plain


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
def test_the_scheme_in_any_case(product: RunningProduct, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {product.api_token}"}
    assert httpx.get(f"{product.base_url}/models", headers=headers).status_code == 200


def test_filling_in_the_middle_is_refused_by_its_name(
    http: httpx.Client, product: RunningProduct
) -> None:
    sent = {"model": product.model, "prompt": "def f(", "suffix": "return x", "max_tokens": 4}
    answer = http.post("/v1/completions", json=sent)
    assert refused(answer) == (400, "unsupported_parameter", "suffix")


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_a_compressed_body_is_refused_for_what_it_is(
    http: httpx.Client, product: RunningProduct, encoding: str
) -> None:
    content = gzip.compress(json.dumps(body(product)).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    for path in (CHAT, "/v1/completions", "/v1/embeddings"):
        answer = http.post(path, content=content, headers=headers)
        assert refused(answer) == (415, "unsupported_media_type", None)
        assert f"Content-Encoding: {encoding}" in answer.json()["error"]["message"]
    headers["Content-Encoding"] = "identity"
    answer = http.post(CHAT, content=json.dumps(body(product)), headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", [f"{CHAT}/", "/v1/models/", "/v1/chat"])
def test_paths_that_are_nearly_right(http: httpx.Client, path: str) -> None:
    """Not redirected: a POST would come back as a GET, without its body."""
    answer = http.post(path, json={})
    assert refused(answer) == (404, "not_found", None)
    assert path in answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "DELETE"])
def test_methods_that_there_are_not(http: httpx.Client, method: str) -> None:
    for path, allowed in ((CHAT, "POST"), ("/v1/models", "GET")):
        answer = http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert answer.headers["x-should-retry"] == "false"
    assert http.get("/v1/models").status_code == 200, "the connection lives on"
