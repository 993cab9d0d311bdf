"""Verifications of versions whose files are in an object storage."""

from pathlib import Path
from typing import Any

import pytest

from apps.audit.types import Actor
from apps.core.hop import database_hop
from apps.registry.models import VerificationRun
from apps.registry.services import import_model, verification_ask
from apps.verification.worker import work
from tests.object_storage import ObjectStorage
from tests.wide_model import wide_model_dir

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]


async def verified(version: Any, actor: Actor) -> VerificationRun:
    run = await database_hop(verification_ask, version=version, actor=actor, is_waking=False)
    await work()
    return await database_hop(VerificationRun.objects.get, pk=run.pk)


async def test_it_is_fetched_and_held_while_it_is_looked_at(
    var: Path, object_storage: ObjectStorage, settings: Any, tmp_path: Path, actor: Actor
) -> None:
    settings.NODE_CACHE_DIR = tmp_path / "node-cache"
    source = wide_model_dir(tmp_path)
    version = await database_hop(import_model, name="wide", source_path=source, actor=actor)
    key = f"{version.path}/model.safetensors"
    right = object_storage.read(key)

    object_storage.write(key, right[:-1] + bytes([right[-1] ^ 1]))
    run = await verified(version, actor)
    assert run.status == "failed"
    assert run.error.startswith("model.safetensors in the artifact storage was altered")
    assert run.checks == []

    object_storage.gate.shut()
    run = await verified(version, actor)
    assert run.error.startswith("The artifact storage does not answer: ")

    object_storage.gate.open()
    object_storage.write(key, right)
    run = await verified(version, actor)
    seen = {check["name"]: check["is_passed"] for check in run.checks}
    assert seen["Files are as imported"]
    assert seen["The engine loads it"]
    assert (settings.NODE_CACHE_DIR / version.manifest_sha256 / "model.safetensors").is_file()
