"""The engine agent with real engines that have a draft model: its files are there before they
start, its guesses are counted, and what they answer is what they would answer without."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from apps.audit.types import SYSTEM, Actor
from apps.core.hop import database_hop
from apps.core.ids import new_id
from apps.deployments.models import Deployment, Replica
from apps.deployments.services import deployment_create, deployment_restart, deployment_update
from apps.engines.client import EngineClient, SamplingParams, TextPrompt
from apps.engines.models import EngineProcess
from apps.engines.paths import AgentPaths
from apps.registry.models import ModelVersion
from apps.registry.services import import_model
from tests.factories import UserFactory
from tests.integration.deployments.test_fetching import (
    WEIGHTS,
    answers,
    cached,
    paths,
    process_when,
    ready,
    running_agent,
)
from tests.models import smollm2_dir
from tests.object_storage import ObjectStorage
from tests.wide_model import wide_model_dir

__all__ = ["paths"]  # a fixture

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]

PROMPT = "List the months of the year, one on each line:\n"


async def text_of(process: EngineProcess, *, n_tokens: int) -> str:
    client = EngineClient(process.socket_path, name="test", expected_epoch=process.epoch)
    await client.connect()
    request_id = new_id("test")
    prepared = await client.prepare(
        request_id=request_id,
        prompt=TextPrompt(text=PROMPT),
        sampling=SamplingParams(temperature=0.0, ignore_eos=True),
        max_tokens=n_tokens,
        cache_salt="test",
        timeout_s=120,
    )
    stream = await client.start(request_id, prepared.max_new_tokens)
    text = "".join([delta.text async for delta in stream])
    assert stream.n_completion_tokens == n_tokens
    await client.close()
    return text


def engine_page(process: EngineProcess) -> str:
    client = Client()
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    url = reverse("admin:engines_engineprocess_change", args=[process.pk])
    return client.get(url).content.decode()


async def test_a_model_guesses_for_another_and_changes_no_answer(
    paths: AgentPaths, actor: Actor
) -> None:
    """The real model under two names, so that each guess is right: one says what the other does."""

    def make() -> tuple[Deployment, ModelVersion]:
        target, draft = (
            import_model(name=name, source_path=smollm2_dir(), actor=actor)
            for name in ("target", "draft")
        )
        deployment = deployment_create(
            actor=actor, name="chat", model_version=target, device_class="cpu", dtype="float32",
            kv_cache_tokens=1024, max_model_len=512,
        )  # fmt: skip
        return deployment, draft

    deployment, draft = await database_hop(make)
    async with running_agent(paths):
        plain = await ready("chat-0")
        expected = await text_of(plain, n_tokens=48)
        await database_hop(
            deployment_update, deployment=deployment, actor=actor, draft_version=draft
        )
        guessed = await process_when(
            "its successor", lambda p: p.state == "ready" and p.epoch == 2, name="chat-0"
        )
        assert await text_of(guessed, n_tokens=48) == expected
        counted = await process_when(
            "its guesses to be counted",
            lambda p: p.stats.get("n_drafted_tokens", 0) > 0,
            name="chat-0",
        )
        stats = counted.stats
        assert stats["n_accepted_tokens"] >= 0.9 * stats["n_drafted_tokens"]
        html = await database_hop(engine_page, counted)
        assert "draft v1 guesses for it" in html
        assert f"{stats['n_drafted_tokens']:,} / {stats['n_accepted_tokens']:,} (" in html
        replica = await database_hop(Replica.objects.get)
        assert replica.estimated_bytes is not None
        assert replica.estimated_bytes / 2 < stats["rss_bytes"] < replica.estimated_bytes


async def test_both_models_files_are_fetched_kept_and_looked_at_again(
    paths: AgentPaths, object_storage: ObjectStorage, tmp_path: Path, actor: Actor, settings: Any
) -> None:
    def make() -> tuple[ModelVersion, ModelVersion]:
        target, draft = (
            import_model(name=name, source_path=wide_model_dir(tmp_path, seed=seed), actor=actor)
            for seed, name in enumerate(("target", "draft"))
        )
        deployment_create(
            actor=actor, name="chat", model_version=target, draft_version=draft,
            device_class="cpu", dtype="float32", kv_cache_tokens=512,
        )  # fmt: skip
        return target, draft

    target, draft = await database_hop(make)
    object_storage.gate.hold(target.size_bytes + (2 << 20))
    async with running_agent(paths):
        process = await process_when(
            "the first, and a part of the second, to be there",
            lambda p: (p.n_fetched_bytes or 0) > target.size_bytes,
            name="chat-0",
        )
        assert (process.state, process.epoch) == ("fetching", 0)
        assert process.n_fetch_bytes == target.size_bytes + draft.size_bytes
        object_storage.gate.open()
        await answers(await ready("chat-0"))
    assert cached(settings) == {target.manifest_sha256, draft.manifest_sha256}

    weights = settings.NODE_CACHE_DIR / draft.manifest_sha256 / WEIGHTS
    data = weights.read_bytes()
    weights.chmod(0o600)
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    async with running_agent(paths):
        failed = await process_when("it to fail", lambda p: p.state == "failed", name="chat-0")
        assert "was altered" in failed.last_error
        deployment = await database_hop(Deployment.objects.get)
        await database_hop(deployment_restart, deployment=deployment, actor=SYSTEM)
        await answers(await ready("chat-0"))
    assert object_storage.gets(f"{target.path}/{WEIGHTS}") == [200]
    assert object_storage.gets(f"{draft.path}/{WEIGHTS}") == [200, 200]


async def test_an_engine_looks_at_the_vocabularies_itself(
    paths: AgentPaths, tmp_path: Path, actor: Actor, settings: Any
) -> None:
    """Such as one that somebody changed in the models' directory."""

    def make() -> None:
        target, draft = (
            import_model(name=name, source_path=wide_model_dir(tmp_path, seed=seed), actor=actor)
            for seed, name in enumerate(("target", "draft"))
        )
        deployment_create(
            actor=actor, name="chat", model_version=target, draft_version=draft,
            device_class="cpu", dtype="float32", kv_cache_tokens=512,
        )  # fmt: skip
        tokenizer = settings.MODELS_DIR / draft.path / "tokenizer.json"
        said = json.loads(tokenizer.read_text())
        vocab = said["model"]["vocab"]
        vocab["1"], vocab["2"] = vocab["2"], vocab["1"]
        tokenizer.write_text(json.dumps(said))

    await database_hop(make)
    async with running_agent(paths):
        failed = await process_when("it to fail", lambda p: p.state == "failed", name="chat-0")
    assert failed.n_restarts == 0
    assert failed.last_error.startswith("exit code 78: ")
    assert "4 entries of their tokenizers' vocabularies differ" in failed.last_error
