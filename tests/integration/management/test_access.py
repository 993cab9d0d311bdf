"""Who may manage: every operation needs its permission, a token with the scope, and an owner. What
is refused changes nothing."""

from typing import Any, Final

import httpx
import pytest
from django.apps import apps
from django.contrib.auth.models import Permission
from guardian.shortcuts import assign_perm

from apps.audit.types import SYSTEM
from apps.core.exceptions import InvalidRequest, PermissionDenied
from apps.core.hop import database_hop
from apps.experiments.services import experiment_start
from apps.gateway.runtime import GatewayRuntime
from apps.rbac.models import ApiToken, RoleGrant, User
from apps.rbac.services import api_token_issue, api_token_update, role_grant_remove
from config import doors
from tests.factories import (
    ApiTokenFactory,
    DeploymentFactory,
    ImportJobFactory,
    JudgeFactory,
    MembershipFactory,
    ModelVersionFactory,
    NodeFactory,
    ReplicaFactory,
    RolloutFactory,
    RouteFactory,
    VerificationRunFactory,
)
from tests.integration.experiments.setting import drafted, route_ready, two_arms
from tests.integration.management.conftest import error_of, headers_of, manager
from tests.rows import all_of

AUTH: Final = "http://testserver/v1/auth/token"
RUN: Final = 90071992
ROLLOUT, WAITING, PAUSED = 90071993, 90071994, 90071995
_DEPLOYMENT: Final = ("deployments.view_deployment",)
_CHANGED: Final = (*_DEPLOYMENT, "deployments.change_deployment")
_VERSION: Final = ("registry.view_modelversion",)
_ROUTE: Final = ("routing.view_route",)
_EXPERIMENT: Final = ("experiments.view_experiment",)
_MOVED: Final = (*_EXPERIMENT, "experiments.change_experiment", "routing.change_route")
_JUDGE: Final = ("judging.view_judge",)
JUDGE: Final = {"name": "new", "route": "compared", "rubric": "5: good. 1: bad."}
ROOMS: Final = (
    "registry", "deployments", "engines", "routing", "judging", "experiments", "rollouts", "audit",
)  # fmt: skip
DRAFT: Final = {
    "name": "new", "route": "team/chat", "metrics": [{"metric": "latency", "role": "primary"}],
    "variants": [
        {"name": "control", "is_control": True}, {"name": "b", "parameters": {"temperature": 0.1}},
    ],
}  # fmt: skip
_ROLLOUT: Final = ("rollouts.view_rollout", *_ROUTE)
_ROLLED: Final = (*_ROLLOUT, "rollouts.change_rollout", "routing.change_route")
TARGETS: Final = {"targets": [{"deployment": "chat", "weight": 1}]}
# Of each operation what is sent, and what somebody must hold: all of it.
CASES: Final[dict[tuple[str, str], tuple[Any, tuple[str, ...]]]] = {
    ("GET", "/models"): (None, ("registry.view_registeredmodel",)),
    ("GET", "/models/smollm2"): (None, ("registry.view_registeredmodel",)),
    ("PATCH", "/models/smollm2"): ({"description": "x"}, ("registry.change_registeredmodel",)),
    ("GET", "/models/smollm2/versions"): (None, _VERSION),
    ("GET", "/models/smollm2/versions/1"): (None, _VERSION),
    ("GET", "/models/smollm2/versions/1/compare?to=smollm2"): (None, _VERSION),
    ("PATCH", "/models/smollm2/versions/1"): (
        {"license": "mit"}, ("registry.change_modelversion",),
    ),
    ("POST", "/models/smollm2/versions/1/stage"): (
        {"stage": "retired"}, ("registry.change_modelversion",),
    ),
    ("GET", "/imports"): (None, ("registry.view_importjob",)),
    ("POST", "/imports"): (
        {"model": "tiny", "source": "tiny.gguf"}, ("registry.add_importjob",),
    ),
    ("GET", "/imports/import-1"): (None, ("registry.view_importjob",)),
    ("POST", "/imports/import-1/cancel"): (None, ("registry.change_importjob",)),
    ("GET", "/verifications"): (None, ("registry.view_verificationrun",)),
    ("POST", "/verifications"): (
        {"version": "smollm2:1"}, ("registry.add_verificationrun", *_VERSION),
    ),
    ("GET", f"/verifications/{RUN}"): (None, ("registry.view_verificationrun",)),
    ("POST", f"/verifications/{RUN}/cancel"): (None, ("registry.change_verificationrun",)),
    ("GET", "/deployments"): (None, _DEPLOYMENT),
    ("POST", "/deployments"): (
        {"name": "new", "model_version": "smollm2:1"},
        ("deployments.add_deployment", *_VERSION),
    ),
    ("GET", "/deployments/chat"): (None, _DEPLOYMENT),
    ("PATCH", "/deployments/chat"): ({"max_replicas": 2}, _CHANGED),
    ("DELETE", "/deployments/spare"): (None, (*_DEPLOYMENT, "deployments.delete_deployment")),
    ("POST", "/deployments/spare/start"): (None, _CHANGED),
    ("POST", "/deployments/chat/drain"): (None, _CHANGED),
    ("POST", "/deployments/chat/stop"): (None, _CHANGED),
    ("POST", "/deployments/chat/restart"): (None, _CHANGED),
    ("GET", "/nodes"): (None, ("engines.view_node",)),
    ("GET", "/nodes/box"): (None, ("engines.view_node",)),
    ("GET", "/rollouts"): (None, _ROLLOUT),
    ("POST", "/rollouts"): (
        {"route": "team/chat", "candidate": "next"},
        ("rollouts.add_rollout", *_ROUTE, "routing.change_route", *_DEPLOYMENT),
    ),
    ("GET", f"/rollouts/{ROLLOUT}"): (None, _ROLLOUT),
    ("POST", f"/rollouts/{WAITING}/approve"): (
        None, (*_ROLLOUT, "rollouts.approve_rollout", "routing.change_route"),
    ),
    ("POST", f"/rollouts/{ROLLOUT}/pause"): (None, _ROLLED),
    ("POST", f"/rollouts/{PAUSED}/resume"): (None, _ROLLED),
    ("POST", f"/rollouts/{ROLLOUT}/abort"): ({"reason": "x"}, _ROLLED),
    ("GET", "/routes"): (None, _ROUTE),
    ("GET", "/routes/team/chat"): (None, _ROUTE),
    ("PUT", "/routes/team/chat"): (TARGETS, (*_ROUTE, "routing.change_route")),
    ("PUT", "/routes/new"): (TARGETS, ("routing.add_route", *_DEPLOYMENT)),
    ("PATCH", "/routes/team/chat"): ({"description": "x"}, (*_ROUTE, "routing.change_route")),
    ("DELETE", "/routes/team/chat"): (None, (*_ROUTE, "routing.delete_route")),
    ("GET", "/experiments"): (None, _EXPERIMENT),
    ("POST", "/experiments"): (DRAFT, ("experiments.add_experiment", *_ROUTE)),
    ("GET", "/experiments/draft"): (None, _EXPERIMENT),
    ("GET", "/experiments/runs/results"): (None, _EXPERIMENT),
    ("GET", "/experiments/runs/results.csv"): (None, _EXPERIMENT),
    ("POST", "/experiments/draft/start"): (None, _MOVED),
    ("POST", "/experiments/runs/weights"): ({"weights": {"b": 70}}, _MOVED),
    ("POST", "/experiments/runs/stop"): (
        {"because": "enough"}, (*_EXPERIMENT, "experiments.change_experiment"),
    ),
    ("GET", "/judges"): (None, _JUDGE),
    ("POST", "/judges"): (JUDGE, ("judging.add_judge", *_ROUTE)),
    ("GET", "/judges/kind"): (None, _JUDGE),
    ("PATCH", "/judges/kind"): ({"per_day": 7}, (*_JUDGE, "judging.change_judge")),
    ("DELETE", "/judges/kind"): (None, (*_JUDGE, "judging.delete_judge")),
    ("POST", "/experiments/runs/promote"): ({"variant": "b"}, (*_MOVED, "rollouts.add_rollout")),
}  # fmt: skip
MAKING: Final = {
    ("POST", f"/{each}")
    for each in ("imports", "verifications", "deployments", "experiments", "rollouts", "judges")
}
# What they lack hides only what a field names: it is as if that were not there.
HIDDEN: Final = {
    ("POST", "/verifications"): _VERSION,
    ("POST", "/deployments"): _VERSION,
    ("POST", "/rollouts"): (*_ROUTE, *_DEPLOYMENT),
    ("PUT", "/routes/new"): _DEPLOYMENT,
    ("POST", "/experiments"): _ROUTE,
    ("POST", "/judges"): _ROUTE,
}


@pytest.fixture
def things(transactional_db: None, tmp_path: Any, settings: Any) -> None:
    settings.IMPORT_ROOTS = [tmp_path]
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    version = ModelVersionFactory(model__name="smollm2")
    RouteFactory(name="team/chat", deployment=DeploymentFactory(name="chat"))
    route = route_ready("compared")
    cooler = two_arms(parameters={"temperature": 0.2})
    drafted(SYSTEM, route, name="draft", variants=cooler, share_percent=10)
    runs = drafted(
        SYSTEM, route, name="runs", variants=two_arms(parameters={"top_p": 0.5}), share_percent=10
    )
    experiment_start(experiment=runs, seen=runs.version, actor=SYSTEM)
    JudgeFactory(name="kind", route=route)
    DeploymentFactory(name="spare", desired_state="stopped")
    ImportJobFactory(job_id="import-1")
    VerificationRunFactory(pk=RUN)
    NodeFactory(name="box")
    ReplicaFactory(deployment=DeploymentFactory(name="next"), index=0)
    RolloutFactory(pk=ROLLOUT, open=True)
    RolloutFactory(pk=WAITING, open=True, state="awaiting")
    RolloutFactory(pk=PAUSED, open=True, state="paused", paused_from="running")
    assert version.version == 1


def state() -> dict[str, list[Any]]:
    return {
        model._meta.label: list(all_of(model).order_by("pk").values())
        for model in apps.get_models()
        if model._meta.label.split(".")[0] in ROOMS
    }


async def ask(api: httpx.AsyncClient, case: tuple[str, str], token: Any = None) -> httpx.Response:
    body, _ = CASES[case]
    headers = {} if token is None else headers_of(token)
    return await api.request(*case, json=body, headers=headers)


def test_every_operation_is_a_case() -> None:
    served = {
        (method.upper(), str(pattern.pattern))
        for pattern in doors.management
        for method in pattern.callback.cls.http_method_names  # type: ignore[union-attr]
    }
    # A route is set in two ways; whose an upload is, test_imports.py asks.
    assert len(served) - 1 == len(CASES) - 1


@pytest.mark.parametrize("case", CASES, ids=" ".join)
async def test_each_needs_all_of_its_permissions_and_no_other(
    anybody: httpx.AsyncClient, things: None, case: tuple[str, str]
) -> None:
    _, needed = CASES[case]
    before = await database_hop(state)
    for missing in needed:
        held = [name for name in needed if name != missing]
        answer = await ask(anybody, case, await database_hop(manager, *held))
        expected = 400 if missing in HIDDEN.get(case, ()) else 403
        assert answer.status_code == expected, (missing, answer.text)
        assert await database_hop(state) == before, missing
    allowed = await ask(anybody, case, await database_hop(manager, *needed))
    assert allowed.status_code == (201 if case in MAKING else 200), allowed.text
    assert (await database_hop(state) == before) == (case[0] == "GET")


@pytest.mark.parametrize("case", CASES, ids=" ".join)
async def test_each_needs_the_scope_an_owner_and_a_token(
    anybody: httpx.AsyncClient, things: None, case: tuple[str, str]
) -> None:
    before = await database_hop(state)
    without = await database_hop(lambda: manager(role="owner", scopes=["inference", "batches"]))
    assert error_of(await ask(anybody, case, without)) == (403, "insufficient_scope", None)
    nobodys = await database_hop(lambda: ApiTokenFactory(scopes=["manage"]))
    assert error_of(await ask(anybody, case, nobodys)) == (403, "insufficient_scope", None)
    assert (await ask(anybody, case)).status_code == 401
    assert await database_hop(state) == before


async def test_a_role_in_a_tenant_manages_nothing(anybody: httpx.AsyncClient, things: None) -> None:
    member = await database_hop(lambda: MembershipFactory(role="owner"))
    token = await database_hop(
        lambda: ApiTokenFactory(tenant=member.tenant, owner=member.user, scopes=["manage"])
    )
    before = await database_hop(state)
    for case in CASES:
        assert (await ask(anybody, case, token)).status_code == 403, case
    assert await database_hop(state) == before


async def test_what_the_owner_loses_the_token_loses_at_once(
    anybody: httpx.AsyncClient, runtime: GatewayRuntime, things: None
) -> None:
    """Without a wait for any memory of who somebody is."""
    token = await database_hop(lambda: manager(role="operator"))
    case = ("POST", "/deployments/chat/stop")
    assert (await ask(anybody, case, token)).status_code == 200
    await database_hop(
        lambda: role_grant_remove(grant=all_of(RoleGrant).get(), by=None, actor=SYSTEM)
    )
    before = await database_hop(state)
    case = ("POST", "/deployments/spare/start")
    assert (await ask(anybody, case, token)).status_code == 403
    await database_hop(lambda: User.objects.update(is_active=False, is_superuser=True))
    assert (await ask(anybody, case, token)).status_code in (401, 403)
    assert await database_hop(state) == before


async def test_an_access_token_does_what_its_api_token_does(
    anybody: httpx.AsyncClient, things: None
) -> None:
    token = await database_hop(lambda: manager(role="viewer"))
    pair = await anybody.post(AUTH, json={}, headers=headers_of(token))
    assert pair.json()["scopes"] == ["manage"]
    headers = {"Authorization": f"Bearer {pair.json()['access_token']}"}
    assert (await anybody.get("/deployments", headers=headers)).status_code == 200
    refused = await anybody.post("/deployments/chat/stop", headers=headers)
    assert refused.status_code == 403


# -- issuing ---------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_token_to_manage_has_an_owner() -> None:
    member = MembershipFactory(role="owner")
    fields: dict[str, Any] = {"tenant": member.tenant, "name": "ci", "actor": SYSTEM}
    with pytest.raises(InvalidRequest) as refusal:
        api_token_issue(scopes=["manage"], **fields)
    assert refusal.value.param == "owner"
    token = ApiTokenFactory(tenant=member.tenant)
    token.scopes = ["inference", "manage"]
    with pytest.raises(InvalidRequest):
        api_token_update(token=token, actor=SYSTEM)
    assert [each.scopes for each in all_of(ApiToken)] == [["inference", "batches"]]
    issued = api_token_issue(scopes=["manage"], owner=member.user, **fields)
    assert issued.token.scopes == ["manage"]
    assert api_token_issue(owner=member.user, **fields).token.scopes == ["inference", "batches"]


@pytest.mark.django_db
@pytest.mark.parametrize("power", ["everything", "a role", "one deployment"])
def test_nobody_hands_out_the_power_of_a_mightier_account(power: str) -> None:
    """Within their tenant both may do the same; to manage is more than that."""
    mine = MembershipFactory(role="owner")
    account = MembershipFactory(tenant=mine.tenant, role="viewer", user__is_service=True).user
    give(account, power)
    before = all_of(ApiToken).count()

    def issue(creator: User, *scopes: str) -> None:
        api_token_issue(
            tenant=mine.tenant, name="ci", actor=SYSTEM, owner=account, created_by=creator,
            scopes=scopes,
        )  # fmt: skip

    with pytest.raises(PermissionDenied, match="The owner may do more than you"):
        issue(mine.user, "manage")
    assert all_of(ApiToken).count() == before
    issue(User.objects.create(username="root", is_superuser=True), "manage")
    assert all_of(ApiToken).count() == before + 1


def give(account: User, power: str) -> None:
    if power == "everything":
        User.objects.filter(pk=account.pk).update(is_superuser=True)
        account.is_superuser = True
    elif power == "a role":
        account.user_permissions.add(Permission.objects.get(codename="change_deployment"))
    else:
        assign_perm("deployments.change_deployment", account, DeploymentFactory())
