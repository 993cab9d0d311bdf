"""An engine that crashes again and again is left alone, and says so, until somebody restarts it."""

import os
import signal

import pytest
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.deployments.models import Deployment
from apps.deployments.selectors import deployments_all, live_state
from apps.deployments.services import deployment_restart
from apps.engines.paths import AgentPaths
from apps.engines.policy import Timings
from tests.integration.deployments.test_reconciler import (
    deployment,
    model_dir,
    paths,
    process_when,
    ready,
    running_agent,
)

__all__ = ["deployment", "model_dir", "paths"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]


async def test_two_kills_open_the_breaker_and_a_restart_closes_it(
    deployment: Deployment, paths: AgentPaths
) -> None:
    async with running_agent(paths, Timings(breaker_crashes=2)):
        for epoch in (1, 2):
            process = await ready(epoch=epoch)
            assert process.tries_again_at is None
            os.kill(process.pid or 0, signal.SIGKILL)
        looping = await process_when("the breaker to open", lambda p: p.state == "crash_loop")
        assert looping.last_error == (
            "2 crashes in a row; left alone for 10 min, or until it is restarted. "
            "The last one: killed by SIGKILL"
        )
        assert looping.tries_again_at is not None
        assert 500 < (looping.tries_again_at - timezone.now()).total_seconds() < 600
        (found,) = await database_hop(deployments_all)
        state = live_state(found)
        assert (state.word, state.last_error) == ("Crash loop", looping.last_error)

        await database_hop(deployment_restart, deployment=deployment, actor=SYSTEM)
        back = await ready(epoch=3)
        assert (back.last_error, back.tries_again_at) == ("", None)
