"""The engine agent with a real engine that is told how to guess: it counts guesses, or makes none,
and answers the same."""

from pathlib import Path

import pytest

from apps.audit.types import Actor
from apps.core.hop import database_hop
from apps.deployments.models import Deployment
from apps.deployments.services import deployment_create, deployment_update
from apps.engines.models import EngineProcess
from apps.engines.paths import AgentPaths
from apps.registry.services import import_model
from tests.integration.deployments.test_draft_model_running import engine_page, text_of
from tests.integration.deployments.test_fetching import paths, process_when, running_agent
from tests.wide_model import wide_model_dir

__all__ = ["paths"]  # a fixture

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]

N_TOKENS = 80


async def counted(*, epoch: int) -> tuple[str, EngineProcess]:
    """Have the engine of that start answer; return its answer, and what it has counted since."""
    process = await process_when(
        f"start {epoch}", lambda p: p.state == "ready" and p.epoch == epoch, name="chat-0"
    )
    text = await text_of(process, n_tokens=N_TOKENS)
    return text, await process_when(
        "its tokens to be counted",
        lambda p: p.epoch == epoch and p.stats.get("n_completion_tokens") == N_TOKENS,
        name="chat-0",
    )


async def test_a_deployment_without_guesses_makes_none_and_changes_no_answer(
    paths: AgentPaths, actor: Actor, tmp_path: Path
) -> None:
    source = wide_model_dir(tmp_path)

    def make() -> Deployment:
        return deployment_create(
            actor=actor, name="chat", device_class="cpu", dtype="float32", kv_cache_tokens=1024,
            model_version=import_model(name="wide", source_path=source, actor=actor),
        )  # fmt: skip

    deployment = await database_hop(make)
    async with running_agent(paths):
        expected, guessing = await counted(epoch=1)
        assert guessing.stats["n_drafted_tokens"] > 0, "else this test shows nothing"
        for epoch, word in ((2, "off"), (3, "ngram")):
            await database_hop(
                deployment_update, deployment=deployment, actor=actor, speculation=word
            )
            text, process = await counted(epoch=epoch)
            assert text == expected
            assert (process.stats["n_drafted_tokens"] > 0) == (word == "ngram")
            said = "guesses nothing" if word == "off" else "guesses by prompt lookup"
            assert said in await database_hop(engine_page, process)
