"""Requests in experiments, through every door, against a real engine."""

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

import httpx
import msgspec
import pytest
from django.core.cache import cache

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.deployments.models import Deployment
from apps.experiments.assigning import subject_digest, variant_of
from apps.experiments.models import Experiment, Variant
from apps.experiments.services import (
    experiment_stop,
    layer_create,
    variant_weights_set,
)
from apps.experiments.types import Arm, VariantSpec, arms_read
from apps.gateway.runtime import GatewayRuntime
from apps.gateway.services import answer
from apps.rbac.models import ApiToken
from apps.rbac.selectors import principal_of_secret
from apps.routing.models import Route, RouteTarget
from tests.integration.gateway.conftest import MODEL, chat
from tests.integration.gateway.experimenting import CHAT, arm, running, user_in, user_of
from tests.integration.gateway.failing_over import deployed, rows
from tests.integration.gateway.streams import ends, opened, send, until
from tests.processes import EngineRun, ServerRun
from tests.waiting import wait_until_async

HEADER = "X-Conversation-Id"


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    cache.clear()


async def test_each_subject_stays_in_its_arm_and_goes_where_that_leads(
    http: httpx.AsyncClient, token: ApiToken, engine_process: EngineRun
) -> None:
    new = await database_hop(deployed, "new", engine_process)
    experiment = await database_hop(running, VariantSpec(name="b", deployment=new))
    await database_hop(lambda: RouteTarget.objects.update(arm="r1.0.b"))
    users = [f"u-{number}" for number in range(20)]
    for _ in range(2):
        answers = await asyncio.gather(
            *(http.post(CHAT, json=chat(user=user, max_tokens=1)) for user in users)
        )
        assert {each.status_code for each in answers} == {200}
    variants = await database_hop(lambda: list(Variant.objects.filter(experiment=experiment)))
    weights = {each.pk: each.weight for each in variants}
    names = {each.pk: each.name for each in variants}
    leads = {"control": ("tiny", "r1.0.b"), "b": ("new", "")}
    seen = set()
    found = await rows()
    assert len(found) == 40
    for row in found:
        subject = subject_digest(
            salt=experiment.salt,
            kind="end_user",
            tenant_id=token.tenant_id,
            identifier=row.end_user,
        )
        variant_id = variant_of(salt=experiment.salt, subject=subject, weights=weights)
        expected = Arm(experiment_id=experiment.pk, variant_id=variant_id, subject=subject)
        assert row.experiment_arm == str(expected)
        deployment = await database_hop(Deployment.objects.get, pk=row.deployment_id)
        assert (deployment.name, row.rollout_arm) == leads[names[variant_id]]
        assert (row.attempt, row.is_fallback) == (1, False)
        seen.add(names[variant_id])
    assert seen == {"control", "b"}


async def test_who_has_no_such_subject_does_not_take_part(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    await database_hop(running)
    assert (await http.post(CHAT, json=chat())).status_code == 200
    (row,) = await rows()
    assert row.experiment_arm == ""


async def test_who_is_not_let_in_does_not_take_part(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    await database_hop(lambda: running(eligibility={"end_user_prefixes": ["vip-"]}))
    for user in ("vip-1", "joe"):
        assert (await http.post(CHAT, json=chat(user=user))).status_code == 200
    vip, joe = await rows()
    assert vip.experiment_arm.startswith("e")
    assert joe.experiment_arm == ""


BODIES: Mapping[str, dict[str, Any]] = {
    CHAT: chat(max_tokens=1),
    "/v1/completions": {"model": MODEL, "prompt": "Hello", "max_tokens": 1},
    "/v1/responses": {"model": MODEL, "input": "Hello", "max_output_tokens": 16},
    "/v1/messages": {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
    },
}


async def test_a_conversation_is_the_same_subject_at_every_http_door(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    await database_hop(lambda: running(subject="conversation"))
    for path, body in BODIES.items():
        response = await http.post(path, json=body, headers={HEADER: "thread-7"})
        assert response.status_code == 200, response.text
        assert (await http.post(path, json=body)).status_code == 200
    found = await rows()
    with_header, without = found[::2], found[1::2]
    assert {row.experiment_arm for row in without} == {""}
    (one,) = {row.experiment_arm for row in with_header}
    assert one.startswith("e")


@pytest.mark.parametrize("name", ["a b", "x" * 129, "é".encode()])
@pytest.mark.parametrize("path", BODIES)
async def test_a_conversation_that_cannot_be(
    http: httpx.AsyncClient, token: ApiToken, path: str, name: str | bytes
) -> None:
    response = await http.post(path, json=BODIES[path], headers={HEADER: name})
    assert response.status_code == 400
    assert "must be 1 to 128 visible ASCII characters" in response.text
    assert await rows() == []


async def test_a_conversation_over_the_websocket(server: ServerRun, token: ApiToken) -> None:
    experiment = await database_hop(lambda: running(subject="conversation"))
    async with opened(server, token) as ws:

        async def is_seen() -> bool:
            await send(ws, type="start", id="c", conversation="thread-7", **chat(max_tokens=1))
            await until(ws, ends("c"))
            return bool((await rows())[-1].experiment_arm)

        await wait_until_async("the server to see the experiment", is_seen)
        await send(ws, type="start", id="c2", conversation="x" * 129, **chat(max_tokens=1))
        (refused,) = await until(ws, ends("c2"))
    assert refused["error"]["param"] == "conversation"
    (found,) = arms_read((await rows())[-1].experiment_arm)
    assert found.subject == subject_digest(
        salt=experiment.salt,
        kind="conversation",
        tenant_id=token.tenant_id,
        identifier="thread-7",
    )


async def test_a_batch_takes_part_by_its_end_users(
    runtime: GatewayRuntime, token: ApiToken
) -> None:
    await database_hop(running)
    principal = await database_hop(principal_of_secret, token.secret)
    body = msgspec.json.encode(chat(user="u-1", max_tokens=1))
    found = await answer(principal=principal, endpoint=CHAT, body=body, door="batch", priority=-1)
    assert found.status == 200
    (row,) = await rows()
    assert (row.door, row.experiment_arm[:1]) == ("batch", "e")


async def test_parameters_hold_where_the_client_says_nothing(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    await database_hop(lambda: Route.objects.update(defaults={"max_tokens": 5, "temperature": 0}))
    experiment = await database_hop(running, VariantSpec(name="b", parameters={"max_tokens": 2}))
    inside = await user_in(experiment, "b", token)
    outside = await user_in(experiment, "control", token)
    unsaid = {"model": MODEL, "messages": chat()["messages"]}
    for body in ({"user": inside}, {"user": inside, "max_tokens": 3}, {"user": outside}):
        assert (await http.post(CHAT, json={**unsaid, **body})).status_code == 200
    assert [row.n_completion_tokens for row in await rows()] == [2, 3, 5]


async def test_a_template_is_the_system_message(http: httpx.AsyncClient, token: ApiToken) -> None:
    template = "Be short. {system}"
    experiment = await database_hop(running, VariantSpec(name="b", prompt_template=template))
    inside = await user_in(experiment, "b", token)
    user = {"role": "user", "content": "Hello"}

    async def n_prompt(system: str | None, **fields: Any) -> int:
        messages = [user] if system is None else [{"role": "system", "content": system}, user]
        response = await http.post(CHAT, json=chat(max_tokens=1, messages=messages, **fields))
        return int(response.json()["usage"]["prompt_tokens"])

    # One token a byte or mark: what is counted is what the engine read.
    assert await n_prompt(None, user=inside) == await n_prompt("Be short.")
    assert await n_prompt("Be kind.", user=inside) == await n_prompt("Be short. Be kind.")
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": 1, "user": inside}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    *_, completion = await rows()
    assert completion.experiment_arm == ""  # it has no place for one


async def test_two_experiments_of_two_layers_at_once(
    http: httpx.AsyncClient, token: ApiToken, engine_process: EngineRun
) -> None:
    new = await database_hop(deployed, "new", engine_process)

    def both() -> tuple[Experiment, Experiment]:
        one = running(VariantSpec(name="b", deployment=new), name="version")
        layer = layer_create(actor=SYSTEM, name="second")
        two = running(
            VariantSpec(name="b", parameters={"max_tokens": 2}), name="length", layer=layer
        )
        return one, two

    one, two = await database_hop(both)
    unsaid = {"model": MODEL, "messages": chat()["messages"], "temperature": 0}
    await database_hop(lambda: Route.objects.update(defaults={"max_tokens": 4}))
    expected = list(itertools.product(["control", "b"], repeat=2))
    for arms in expected:
        user = await user_of({one: arms[0], two: arms[1]}, token)
        assert (await http.post(CHAT, json={**unsaid, "user": user})).status_code == 200
    names = await database_hop(lambda: dict(Variant.objects.values_list("pk", "name")))
    seen = []
    for row in await rows():
        first, second = arms_read(row.experiment_arm)
        assert (first.experiment_id, second.experiment_id) == (one.pk, two.pk)
        assert first.subject != second.subject
        arms = (names[first.variant_id], names[second.variant_id])
        assert (row.deployment_id == new.pk) == (arms[0] == "b")
        assert row.n_completion_tokens == (2 if arms[1] == "b" else 4)
        seen.append(arms)
    assert seen == expected


# -- what changes while it runs -------------------------------------------------------------------


async def test_a_stop_and_new_weights_are_seen_at_once(
    http: httpx.AsyncClient, token: ApiToken
) -> None:
    experiment = await database_hop(running)
    inside = await user_in(experiment, "b", token)

    async def last() -> str:
        assert (await http.post(CHAT, json=chat(user=inside, max_tokens=1))).status_code == 200
        return await arm((await rows())[-1])

    assert await last() == "b"
    experiment = await database_hop(
        lambda: variant_weights_set(
            experiment=experiment,
            seen=experiment.version,
            actor=SYSTEM,
            weights={"control": 1000, "b": 1},
        )
    )

    async def is_moved() -> bool:
        return await last() == "control"

    await wait_until_async("the new weights", is_moved)
    await database_hop(
        lambda: experiment_stop(
            experiment=experiment, seen=experiment.version, actor=SYSTEM, because="It is enough."
        )
    )

    async def is_out() -> bool:
        return await last() == ""

    await wait_until_async("the stop", is_out)
