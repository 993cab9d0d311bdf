"""``/admin/live`` of rollouts: who watches one hears how it goes; who may not see it, nothing."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.deployments.models import Deployment
from apps.engines.models import EngineProcess
from apps.rbac.models import User
from apps.rollouts.controller import tick
from apps.rollouts.models import Rollout
from apps.rollouts.services import rollout_pause, rollout_start
from tests.factories import UserFactory
from tests.integration.console.test_live import (
    deployment,
    engine,
    engine_set,
    heard,
    heard_until,
    opened,
    server,
    session_of,
)
from tests.integration.gateway.conftest import shared_server
from tests.integration.rollouts.places import QUICK, answered, place
from tests.processes import ServerRun

__all__ = ["deployment", "engine", "server", "shared_server"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]


def started() -> Rollout:
    here = place()
    return rollout_start(route=here.route, candidate=here.new, steps=QUICK, actor=SYSTEM, by=None)


def counted(rollout: Rollout) -> None:
    answered(rollout, "candidate", 5)
    answered(rollout, "baseline", 7)
    tick()


async def test_a_page_hears_how_a_rollout_goes(server: ServerRun) -> None:
    await database_hop(UserFactory, admin=True, username="ann")
    rollout: Any = await database_hop(started)
    o = f"o{rollout.pk}"
    async with opened(server, session_of(server, "ann"), query=f"?rollout={rollout.pk}") as socket:
        first = await heard_until(socket, f"{o}.shape")
        assert [first[f"{o}.{name}"] for name in ("state", "percent", "s0.n", "s0.width")] == [
            "Running", "10 %", "0", "0.0",
        ]  # fmt: skip
        assert first[f"{o}.error_rate.verdict"] == "Nothing to judge yet."
        await database_hop(counted, rollout)
        later = await heard_until(socket, f"{o}.s0.n")
        assert [later[f"{o}.{name}"] for name in ("s0.n", "s0.nb", "s0.width")] == [
            "5", "7", "25.0",
        ]  # fmt: skip
        assert f"{o}.shape" not in later
        await database_hop(
            rollout_pause, rollout=rollout, seen=rollout.version, actor=SYSTEM, by=None
        )
        paused = await heard_until(socket, f"{o}.shape")
        assert paused[f"{o}.state"] == "Paused"


@pytest.mark.parametrize("missing", ["view_rollout", "view_route"])
async def test_nobody_hears_of_a_rollout_that_they_may_not_see(
    server: ServerRun, deployment: Deployment, engine: EngineProcess, missing: str
) -> None:
    def bob() -> None:
        user: User = UserFactory(is_staff=True, username="bob")
        held = {"view_deployment", "view_rollout", "view_route"} - {missing}
        user.user_permissions.set(Permission.objects.filter(codename__in=held))

    await database_hop(bob)
    await database_hop(UserFactory, admin=True, username="ann")
    rollout: Any = await database_hop(started)
    query = f"?rollout={rollout.pk}"
    cookies = [session_of(server, name) for name in ("ann", "bob")]
    async with opened(server, cookies[0], query=query) as anns:
        await heard_until(anns, f"o{rollout.pk}.shape")  # it is looked at, then
        async with opened(server, cookies[1], query=query) as socket:
            texts = (await heard(socket))["texts"]
            await database_hop(counted, rollout)
            await database_hop(engine_set, engine, n_restarts=7)
            texts |= await heard_until(socket, f"d{deployment.pk}.restarts")
    assert texts[f"d{deployment.pk}.restarts"] == "7"
    assert not [key for key in texts if key[0] == "o"]
