"""Where a client of a remote replica connects, and what else it can and cannot."""

import json
import struct
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from apps.engines.client import (
    TextPrompt,
    TokenPrompt,
)
from apps.engines.exceptions import (
    EngineDead,
    EngineFault,
    EngineRequestError,
)
from apps.engines.remote.client import RemoteClient
from tests import remote
from tests.remote import DONE, Upstream, of_body, piece, streamed, target, usage, whole
from tests.unit.engines.remote.asking import HELLO, all_of, ask, text_of
from tests.waiting import wait_until_async


class Resolver(AbstractResolver):
    """A name server that is someone else's: it answers what it likes, each time anew."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        address = self.answers.pop(0)
        return [ResolveResult(hostname=host, host=address, port=port, family=2, proto=6, flags=0)]

    async def close(self) -> None:
        pass


async def test_a_name_that_moves_into_the_house_is_not_followed(
    upstream: Upstream, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First an address that is allowed, then, for a new connection, one that is not."""
    upstream.answer = whole(prompt_tokens=1, completion_tokens=1)
    settings.REMOTE_ALLOWED_NETWORKS = ["127.0.0.1/32"]
    url = f"http://models.example.com:{upstream.port}/v1"
    resolver = Resolver("127.0.0.1", "127.0.0.2", "169.254.169.254", "10.0.0.1")
    connector = aiohttp.TCPConnector.__init__
    monkeypatch.setattr(
        aiohttp.TCPConnector,
        "__init__",
        lambda self, **options: connector(
            self,
            **options | {"use_dns_cache": False, "force_close": True, "keepalive_timeout": None},
        ),
    )
    client = RemoteClient(target(url), resolver=resolver)
    await client.connect()
    assert text_of(await all_of(await ask(client, is_streamed=False))) == "Hello"
    for _ in range(3):
        with pytest.raises(EngineDead):
            await all_of(await ask(client, is_streamed=False))
    assert resolver.answers == []
    assert len(upstream.asked) == 1
    await client.close()


@pytest.mark.parametrize("listed", [[], ["10.0.0.0/8"]])
async def test_an_address_is_refused_when_it_is_no_longer_listed(
    upstream: Upstream, settings: Any, listed: list[str]
) -> None:
    settings.REMOTE_ALLOWED_NETWORKS = listed
    with pytest.raises(EngineDead, match="refused"):
        await RemoteClient(target(upstream.base_url)).connect()
    settings.REMOTE_ALLOWED_NETWORKS = ["127.0.0.0/8"]
    client = RemoteClient(target(upstream.base_url))
    await client.connect()
    settings.REMOTE_ALLOWED_NETWORKS = listed
    with pytest.raises(EngineDead, match="not a public address"):
        await client.look(timeout_s=1)
    assert upstream.headers == []
    await client.close()


async def test_certificates_are_checked(tmp_path: Path) -> None:
    """Another authority, and a certificate of another address, are no server of ours."""
    for address, error in (("127.0.0.1", None), ("127.0.0.2", EngineDead)):
        directory = tmp_path / address
        directory.mkdir()
        tls, authority = remote.certificates(directory, address=address)
        async with remote.upstream(tls) as run:
            for ca_file in ("", str(authority)):
                client = RemoteClient(target(run.base_url, ca_file=ca_file))
                await client.connect()
                if error is None and ca_file:
                    await client.look(timeout_s=2)
                else:
                    with pytest.raises(EngineDead, match="CERTIFICATE_VERIFY_FAILED"):
                        await client.look(timeout_s=2)
                await client.close()
            assert len(run.headers) == (1 if error is None else 0)


async def test_proxies_of_the_environment_are_not_asked(
    client: RemoteClient, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    await client.look(timeout_s=2)


async def test_looking_says_what_is_wrong(client: RemoteClient, upstream: Upstream) -> None:
    await client.look(timeout_s=2)
    upstream.models = ("other", "another")
    with pytest.raises(EngineFault, match=r"no model 'their-model'; it has: another, other"):
        await client.look(timeout_s=2)


async def test_embeddings(upstream: Upstream) -> None:
    client = RemoteClient(target(upstream.base_url, task="embed"))
    await client.connect()
    data = [{"index": 1, "embedding": [0, 1.5]}, {"index": 0, "embedding": [2.0, -1]}]
    body = {"data": data, "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    upstream.answer = of_body(json.dumps(body).encode())
    inputs = [TextPrompt(text="a"), TokenPrompt(token_ids=(1, 2))]
    measured = await client.measure_inputs(request_id="e", inputs=inputs, timeout_s=1)
    assert measured.n_tokens == (9, 2)
    found = await client.embed(request_id="e", inputs=measured.inputs, timeout_s=2)
    assert [struct.unpack("<2f", each) for each in found.vectors] == [(2.0, -1.0), (0.0, 1.5)]
    assert found.n_prompt_tokens == 4
    assert upstream.asked[0]["input"] == ["a", [1, 2]]
    for bad in (data[:1], [*data, data[0]], [data[0], {"index": 0, "embedding": [1]}], []):
        upstream.answer = of_body(json.dumps({"data": bad}).encode())
        with pytest.raises(EngineFault):
            await client.embed(request_id="e", inputs=inputs, timeout_s=2)
    with pytest.raises(EngineRequestError) as refused:
        await ask(client)
    assert (refused.value.code, refused.value.param) == ("unsupported_task", "model")
    await client.close()


async def test_what_only_an_engine_can_do_is_refused(client: RemoteClient) -> None:
    with pytest.raises(EngineRequestError, match="tokenizer"):
        await client.detokenize(request_id="d", token_ids=(1,), timeout_s=1)
    with pytest.raises(EngineRequestError, match="tokenizer"):
        await client.tokenize(
            request_id="t", prompt=HELLO, add_special_tokens=None, with_strings=False, timeout_s=1
        )
    with pytest.raises(EngineRequestError):
        await client.measure_inputs(request_id="m", inputs=[TextPrompt(text="a")], timeout_s=1)


async def test_a_key_that_cannot_be_read_is_said(upstream: Upstream) -> None:
    with pytest.raises(EngineDead, match="key"):
        await RemoteClient(target(upstream.base_url, key_sealed="nonsense")).connect()
    with pytest.raises(EngineDead, match="certificates"):
        await RemoteClient(target(upstream.base_url, ca_file="/nowhere.pem")).connect()


async def test_a_connection_is_kept_after_a_stream_and_nobody_waits_for_its_end(
    client: RemoteClient, upstream: Upstream
) -> None:
    """The server says that it is done, and ends a moment later, or much later."""
    ports: list[int] = []

    def ending_after(wait_s: float) -> remote.Answer:
        answer = streamed(piece("Hello", finish_reason="stop"), usage(2, 1), DONE, wait_s)

        async def noted(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            ports.append(request.transport.get_extra_info("peername")[1])
            return await answer(request)

        return noted

    for wait_s in (0.1, 0.0, 30.0, 0.0):
        upstream.answer = ending_after(wait_s)
        assert text_of(await all_of(await ask(client))) == "Hello"
        assert client._running or wait_s < 30  # nobody has waited for it
        await wait_until_async("its end to be read", lambda: _of(client._running == {}))
    assert ports[0] == ports[1] == ports[2] != ports[3]


async def _of(value: bool) -> bool:
    return value
