"""``/tokenize`` and ``/detokenize`` in this process, against a real engine."""

import httpx
import pytest

from apps.core.hop import database_hop
from apps.engines.models import EngineProcess
from apps.metering.models import UsageRecord
from tests.integration.gateway.conftest import MODEL
from tests.processes import CONTEXT_LENGTH, EngineRun
from tests.rows import all_of
from tests.waiting import wait_until

# The tiny model's vocabulary: a token a byte, and two marks.
CHAT = [{"role": "user", "content": "Hé"}]
RENDERED = "<|im_start|>user\nHé<|im_end|>\n<|im_start|>assistant\n"


async def test_a_prompt_to_ids_and_back(http: httpx.AsyncClient) -> None:
    text = "Straße 👍🏽\n"
    response = await http.post("/tokenize", json={"model": MODEL, "prompt": text})
    assert response.status_code == 200
    assert response.headers["x-request-id"]
    found = response.json()
    assert set(found) == {"count", "max_model_len", "tokens", "token_strs"}
    assert (found["count"], found["max_model_len"]) == (len(text.encode()), CONTEXT_LENGTH)
    assert len(found["tokens"]) == found["count"]
    assert found["token_strs"] is None
    body = {"model": MODEL, "tokens": found["tokens"]}
    assert (await http.post("/detokenize", json=body)).json() == {"prompt": text}
    body = {"model": MODEL, "tokens": []}
    assert (await http.post("/detokenize", json=body)).json() == {"prompt": ""}


async def test_a_chat_is_counted_as_it_is_charged(http: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "messages": CHAT, "return_token_strs": True}
    found = (await http.post("/tokenize", json=body)).json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert [each for each in found["token_strs"] if each.startswith("<|")] == [
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>",
    ]
    back = await http.post("/detokenize", json={"model": MODEL, "tokens": found["tokens"]})
    assert back.json() == {"prompt": RENDERED}
    assert await database_hop(all_of(UsageRecord).count) == 0
    asked = {"model": MODEL, "messages": CHAT, "max_tokens": 1}
    answer = (await http.post("/v1/chat/completions", json=asked)).json()
    assert answer["usage"]["prompt_tokens"] == found["count"]
    by_ids = {"model": MODEL, "prompt": found["tokens"], "max_tokens": 1}
    answer = (await http.post("/v1/completions", json=by_ids)).json()
    assert answer["usage"]["prompt_tokens"] == found["count"]


async def test_longer_than_the_context_is_counted(http: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "prompt": "x" * (CONTEXT_LENGTH + 10)}
    assert (await http.post("/tokenize", json=body)).json()["count"] == CONTEXT_LENGTH + 10


@pytest.mark.parametrize(
    ("path", "fields", "status", "code", "param"),
    [
        ("/tokenize", {"prompt": "x" * 3_000_000}, 400, "context_length_exceeded", "prompt"),
        ("/tokenize", {"prompt": "a", "model": "no/such"}, 404, "model_not_found", "model"),
        ("/tokenize", {}, 400, "missing_required_parameter", "prompt"),
        ("/tokenize", {"prompt": "a", "x": 1}, 400, "unknown_parameter", "x"),
        ("/detokenize", {"tokens": [1, 320]}, 400, "invalid_value", "tokens"),
        ("/detokenize", {"tokens": [1] * 262_145}, 400, "invalid_value", "tokens"),
        ("/detokenize", {"tokens": [1], "model": "no/such"}, 404, "model_not_found", "model"),
    ],
)
async def test_refusals_name_their_field(
    http: httpx.AsyncClient,
    path: str,
    fields: dict[str, object],
    status: int,
    code: str,
    param: str,
) -> None:
    response = await http.post(path, json={"model": MODEL, **fields})
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_a_token_and_a_post_are_needed(http: httpx.AsyncClient, path: str) -> None:
    body = {"model": MODEL, "prompt": "a"}
    for header in ("", "Bearer sk-nano-wrong"):
        response = await http.post(path, json=body, headers={"Authorization": header})
        assert response.status_code == 401
    response = await http.get(path)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    response = await http.post(path, content=b"", headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    assert (await http.post(f"{path}/", json=body)).status_code == 404


async def test_an_engine_that_is_gone(http: httpx.AsyncClient, engine_process: EngineRun) -> None:
    gone = str(engine_process.socket_path) + ".gone"
    await database_hop(lambda: EngineProcess.objects.update(socket_path=gone))
    response = await http.post("/tokenize", json={"model": MODEL, "prompt": "a"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert gone not in response.text


async def test_nothing_of_all_this_is_left_in_the_engine(engine_process: EngineRun) -> None:
    wait_until("the engine to be idle", engine_process.is_idle)
