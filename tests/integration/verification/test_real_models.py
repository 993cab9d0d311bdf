"""The real models pass, with the figures of such models; a copy with one flipped bit does not."""

from pathlib import Path

import pytest

from apps.audit.types import Actor
from apps.core.hop import database_hop
from tests.integration.verification.conftest import MakeVersion
from tests.integration.verification.test_worker import flip, verified
from tests.models import minilm_dir, smollm2_dir

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]


async def test_the_embedding_model(make_version: MakeVersion, actor: Actor, var: Path) -> None:
    version = await database_hop(make_version, minilm_dir())
    run = await verified(version, actor)
    print(run.figures)
    assert (run.status, run.error) == ("passed", "")
    assert run.figures["embedding_size"] == 384
    assert run.figures["similar"] > 0.6 > 0.2 > run.figures["dissimilar"]

    flip(var / "models" / version.path)
    run = await verified(version, actor)
    assert run.status == "failed"
    assert run.error.startswith("model.safetensors was altered")


@pytest.mark.prove
async def test_the_chat_model(make_version: MakeVersion, actor: Actor) -> None:
    run = await verified(await database_hop(make_version, smollm2_dir()), actor)
    print(run.figures)
    assert (run.status, run.error) == ("passed", "")
    assert run.version.stage == "verified"
    assert 30 < run.figures["perplexity"] < 45
    (capital,) = [
        c for c in run.checks if c["name"] == "What is the capital of France? is answered"
    ]
    assert "Paris" in capital["said"]
