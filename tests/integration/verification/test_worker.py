"""Whole verifications with a real scratch engine: of good models and broken ones, and cancelled."""

import asyncio
import math
import os
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from apps.audit.types import Actor
from apps.core.hop import database_hop
from apps.registry.models import ModelVersion, VerificationRun
from apps.registry.services import verification_ask, verification_cancel
from apps.registry.types import VERIFY_WORK
from apps.verification import tasks
from apps.verification.texts import PROBE_TEXT
from apps.verification.worker import work
from tests.integration.verification.conftest import MakeVersion, engines_of, fresh
from tests.waiting import wait_until_async

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]


async def verified(version: ModelVersion, actor: Actor) -> VerificationRun:
    run = await database_hop(verification_ask, version=version, actor=actor, is_waking=False)
    await work()
    return await database_hop(fresh, run)


def reference_perplexity(directory: Path) -> float:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = tokenizer(PROBE_TEXT, return_tensors="pt").input_ids[:, :511]
    with torch.no_grad():
        return math.exp(model(ids, labels=ids).loss.item())


async def test_a_good_model_passes_with_its_figures(
    make_version: MakeVersion, even_llama_dir: Path, actor: Actor
) -> None:
    version = await database_hop(make_version, even_llama_dir)
    run = await verified(version, actor)
    assert (run.status, run.error, run.attempt) == ("passed", "", 1)
    assert run.version.stage == "verified"
    assert run.figures["n_perplexity_tokens"] == 510
    assert run.figures["perplexity"] == pytest.approx(
        reference_perplexity(even_llama_dir), rel=0.02
    )
    positive = ("ttft_ms", "itl_ms", "tokens_per_s", "load_s", "memory_mb")
    assert all(run.figures[name] > 0 for name in positive)
    assert len(run.checks) == 2 + 8 + 1
    assert all(check["is_passed"] for check in run.checks)


async def test_a_model_that_is_sure_of_nonsense_fails(
    make_version: MakeVersion, wild_llama_dir: Path, actor: Actor
) -> None:
    run = await verified(await database_hop(make_version, wild_llama_dir), actor)
    assert run.status == "failed"
    assert run.error.startswith("Perplexity is better than a guess: no; ")
    assert run.version.stage == "draft"


async def test_vectors_of_random_weights(
    make_version: MakeVersion, bert_dir: Path, actor: Actor
) -> None:
    run = await verified(await database_hop(make_version, bert_dir), actor)
    seen = {check["name"]: check["is_passed"] for check in run.checks}
    assert seen["A vector has the model's size"]
    assert seen["A text has the same vector again"]
    assert seen["Vectors have length 1"]
    assert run.figures["embedding_size"] == 48
    assert run.figures["texts_per_s"] > 0


def flip(directory: Path) -> None:
    with (directory / "model.safetensors").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def shorten(directory: Path) -> None:
    file = directory / "tokenizer.json"
    os.truncate(file, file.stat().st_size - 1)


def remove(directory: Path) -> None:
    (directory / "config.json").unlink()


def add(directory: Path) -> None:
    (directory / "chat_template.txt").write_text("x")


def link(directory: Path) -> None:
    (directory / "config.json").rename(directory.parent / "config.json")
    (directory / "config.json").symlink_to(directory.parent / "config.json")


def manifest_altered(directory: Path) -> None:
    with (directory / "manifest.json").open("a") as file:
        file.write(" ")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (flip, "model.safetensors was altered: its SHA-256 is"),
        (shorten, "tokenizer.json has "),
        (remove, "config.json is missing, or is no plain file."),
        (link, "config.json is missing, or is no plain file."),
        (add, "chat_template.txt is not in the manifest."),
        (manifest_altered, "manifest.json was altered"),
    ],
)
async def test_altered_files_are_named_and_no_engine_starts(
    make_version: MakeVersion, even_llama_dir: Path, actor: Actor, var: Path, spoil: Any, said: str
) -> None:
    version = await database_hop(make_version, even_llama_dir)
    spoil(var / "models" / version.path)
    run = await verified(version, actor)
    assert (run.status, run.version.stage) == ("failed", "draft")
    assert run.error.startswith(said)
    assert run.checks == []
    assert not (var / "logs").exists()


def test_the_workers_tasks_run_what_waits(
    make_version: MakeVersion, even_llama_dir: Path, actor: Actor, var: Path
) -> None:
    version = make_version(even_llama_dir)
    flip(var / "models" / version.path)
    run = verification_ask(version=version, actor=actor, is_waking=False)
    tasks.reap()  # which wakes a worker
    assert fresh(run).status == "queued"
    tasks.work()
    assert fresh(run).status == "failed"
    assert {tasks.work.name, tasks.reap.name} == {VERIFY_WORK, "verification.reap"}
    assert settings.CELERY_BEAT_SCHEDULE["verification.reap"]["task"] == tasks.reap.name


async def test_a_model_that_does_not_load_fails_with_the_log(
    make_version: MakeVersion, even_llama_dir: Path, actor: Actor, var: Path
) -> None:
    """Files as imported, and an engine that cannot read them: here, of another architecture."""
    import hashlib
    import json

    version = await database_hop(make_version, even_llama_dir)
    directory = var / "models" / version.path
    config = (
        (directory / "config.json").read_bytes().replace(b"LlamaForCausalLM", b"LlamaForNobody")
    )
    (directory / "config.json").write_bytes(config)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"]["config.json"] = {
        "sha256": hashlib.sha256(config).hexdigest(), "size_bytes": len(config),
    }  # fmt: skip
    (directory / "manifest.json").write_text(json.dumps(manifest))
    digest = hashlib.sha256((directory / "manifest.json").read_bytes()).hexdigest()
    version.manifest, version.manifest_sha256 = manifest, digest
    await database_hop(version.save)
    run = await verified(version, actor)
    assert run.status == "failed"
    assert run.error.startswith("The engine does not start: exit code 78")
    assert "LlamaForNobody" in run.log


async def test_one_that_is_cancelled_ends_its_engine(
    make_version: MakeVersion, even_llama_dir: Path, actor: Actor, var: Path
) -> None:
    version = await database_hop(make_version, even_llama_dir)
    run = await database_hop(verification_ask, version=version, actor=actor, is_waking=False)
    task = asyncio.create_task(work())
    await wait_until_async("an engine", lambda: engines_of(var), timeout_s=60)
    await database_hop(verification_cancel, run=run, actor=actor)
    await asyncio.wait_for(task, 60)
    run = await database_hop(fresh, run)
    assert (run.status, run.version.stage) == ("cancelled", "draft")


async def test_a_worker_that_is_told_to_stop_leaves_it_to_the_next(
    make_version: MakeVersion, even_llama_dir: Path, actor: Actor, var: Path
) -> None:
    version = await database_hop(make_version, even_llama_dir)
    run = await database_hop(verification_ask, version=version, actor=actor, is_waking=False)
    seen: list[int] = []

    def is_stopping() -> bool:
        seen.extend(engines_of(var))
        return bool(seen)

    await work(is_stopping=is_stopping)
    assert engines_of(var) == []
    run = await database_hop(fresh, run)
    assert (run.status, run.attempt) == ("queued", 0)
    await work()
    assert (await database_hop(fresh, run)).status == "passed"


async def test_a_version_that_kills_its_workers_is_given_up(
    make_version: MakeVersion, even_llama_dir: Path, actor: Actor
) -> None:
    version = await database_hop(make_version, even_llama_dir)
    run = await database_hop(verification_ask, version=version, actor=actor, is_waking=False)
    await database_hop(VerificationRun.objects.filter(pk=run.pk).update, attempt=3)
    await work()
    run = await database_hop(fresh, run)
    assert (run.status, run.error) == (
        "failed", "Its worker was lost 3 times; it is not tried again.",
    )  # fmt: skip
