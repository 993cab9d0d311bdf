"""Every door of the API x every role x another tenant's things. Each method of each path is a case
here; one that is not fails the test. Of the roles those between others are the long form's."""

from typing import Any

import httpx
import pytest

from apps.audit.models import AuditEvent
from apps.audit.types import SYSTEM
from apps.batches.models import Batch, UploadedFile
from apps.core.hop import database_hop
from apps.deployments.models import Deployment
from apps.experiments.models import Experiment
from apps.feedback.models import MetricEvent
from apps.gateway.runtime import GatewayRuntime
from apps.judging.models import Judge
from apps.metering.models import UsageRecord
from apps.rbac.models import ApiToken, Role, TokenFamily
from apps.rbac.types import SCOPES
from apps.registry.models import ImportJob, ModelVersion, RegisteredModel, VerificationRun
from apps.rollouts.models import Rollout
from apps.routing.models import Route
from apps.routing.services import route_update
from tests.factories import (
    ApiTokenFactory,
    BatchFactory,
    DeploymentFactory,
    ExperimentFactory,
    ImportJobFactory,
    JudgeFactory,
    MembershipFactory,
    ModelVersionFactory,
    NodeFactory,
    RolloutFactory,
    UploadedFileFactory,
    UsageRecordFactory,
    VerificationRunFactory,
)
from tests.integration.batches.conftest import files_dir
from tests.integration.gateway.conftest import MODEL, engine_process, http, route, runtime, token
from tests.integration.gateway.test_powers import ASK
from tests.integration.isolation.roles import roles
from tests.integration.isolation.urls import walk
from tests.rows import all_of
from tests.waiting import wait_until_async

__all__ = ["engine_process", "files_dir", "http", "route", "runtime", "token"]

FORM = {"files": {"file": ("x.jsonl", b"{}")}, "data": {"purpose": "batch"}}
BATCH = {
    "input_file_id": "{file}", "endpoint": "/v1/chat/completions", "completion_window": "24h",
}  # fmt: skip
MANAGED = "v1/manage/"
MANAGED_KINDS = (
    "models", "imports", "verifications", "deployments", "nodes", "routes", "rollouts",
    "experiments", "judges",
)  # fmt: skip
# What is the platform's, or may be shown to others of it: roles in a tenant give nothing of it.
MANAGEMENT: dict[tuple[str, str], dict[str, Any]] = {
    **{("get", f"v1/manage/{kind}"): {} for kind in MANAGED_KINDS},
    ("get", "v1/manage/models/<str:name>"): {"path": "v1/manage/models/{catalogued}"},
    ("patch", "v1/manage/models/<str:name>"): {
        "path": "v1/manage/models/{catalogued}", "json": {"description": "x"},
    },
    ("get", "v1/manage/models/<str:name>/versions"): {
        "path": "v1/manage/models/{catalogued}/versions",
    },
    ("get", "v1/manage/models/<str:name>/versions/<str:number>"): {
        "path": "v1/manage/models/{catalogued}/versions/1",
    },
    ("patch", "v1/manage/models/<str:name>/versions/<str:number>"): {
        "path": "v1/manage/models/{catalogued}/versions/1", "json": {"license": "mit"},
    },
    ("post", "v1/manage/models/<str:name>/versions/<str:number>/stage"): {
        "path": "v1/manage/models/{catalogued}/versions/1/stage", "json": {"stage": "retired"},
    },
    ("get", "v1/manage/models/<str:name>/versions/<str:number>/compare"): {
        "path": "v1/manage/models/{catalogued}/versions/1/compare?to={catalogued}",
    },
    ("post", "v1/manage/imports"): {"json": {"model": "{catalogued}", "source": "x.gguf"}},
    ("get", "v1/manage/imports/<str:import_id>"): {"path": "v1/manage/imports/{import}"},
    ("patch", "v1/manage/imports/<str:import_id>/file"): {
        "path": "v1/manage/imports/{import}/file",
    },
    ("post", "v1/manage/imports/<str:import_id>/cancel"): {
        "path": "v1/manage/imports/{import}/cancel",
    },
    ("post", "v1/manage/verifications"): {"json": {"version": "{catalogued}"}},
    ("get", "v1/manage/verifications/<str:verification_id>"): {
        "path": "v1/manage/verifications/{run}",
    },
    ("post", "v1/manage/verifications/<str:verification_id>/cancel"): {
        "path": "v1/manage/verifications/{run}/cancel",
    },
    ("post", "v1/manage/deployments"): {
        "json": {"name": "spy", "model_version": "{catalogued}"},
    },
    ("get", "v1/manage/deployments/<str:name>"): {"path": "v1/manage/deployments/{deployment}"},
    ("patch", "v1/manage/deployments/<str:name>"): {
        "path": "v1/manage/deployments/{deployment}", "json": {"max_replicas": 2},
    },
    ("delete", "v1/manage/deployments/<str:name>"): {
        "path": "v1/manage/deployments/{deployment}",
    },
    **{
        ("post", f"v1/manage/deployments/<str:name>/{verb}"): {
            "path": f"v1/manage/deployments/{{deployment}}/{verb}",
        }
        for verb in ("start", "drain", "stop", "restart")
    },
    ("get", "v1/manage/nodes/<str:name>"): {"path": "v1/manage/nodes/{node}"},
    ("post", "v1/manage/rollouts"): {"json": {"route": "{model}", "candidate": "{deployment}"}},
    ("get", "v1/manage/rollouts/<str:rollout_id>"): {"path": "v1/manage/rollouts/{rollout}"},
    **{
        ("post", f"v1/manage/rollouts/<str:rollout_id>/{verb}"): {
            "path": f"v1/manage/rollouts/{{rollout}}/{verb}",
        }
        for verb in ("approve", "pause", "resume")
    },
    ("post", "v1/manage/rollouts/<str:rollout_id>/abort"): {
        "path": "v1/manage/rollouts/{rollout}/abort", "json": {"reason": "x"},
    },
    ("get", "v1/manage/routes/<path:name>"): {"path": "v1/manage/routes/{model}"},
    ("put", "v1/manage/routes/<path:name>"): {
        "path": "v1/manage/routes/{model}",
        "json": {"targets": [{"deployment": "tiny", "weight": 1}]},
    },
    ("patch", "v1/manage/routes/<path:name>"): {
        "path": "v1/manage/routes/{model}", "json": {"is_restricted": False},
    },
    ("delete", "v1/manage/routes/<path:name>"): {"path": "v1/manage/routes/{model}"},
    ("post", "v1/manage/experiments"): {
        "json": {
            "name": "spy", "route": "{model}", "metrics": [],
            "variants": [{"name": "control", "is_control": True}],
        },
    },
    ("post", "v1/manage/judges"): {
        "json": {"name": "spy", "route": "{model}", "rubric": "5: tells me everything."},
    },
    ("get", "v1/manage/judges/<str:name>"): {"path": "v1/manage/judges/{judge}"},
    ("patch", "v1/manage/judges/<str:name>"): {
        "path": "v1/manage/judges/{judge}", "json": {"is_on": False},
    },
    ("delete", "v1/manage/judges/<str:name>"): {"path": "v1/manage/judges/{judge}"},
    **{
        ("get", f"v1/manage/experiments/<str:name>{part}"): {
            "path": f"v1/manage/experiments/{{experiment}}{part}",
        }
        for part in ("", "/results", "/results.csv")
    },
    **{
        ("post", f"v1/manage/experiments/<str:name>/{verb}"): {
            "path": f"v1/manage/experiments/{{experiment}}/{verb}", "json": body,
        }
        for verb, body in (
            ("start", None), ("stop", {"because": "x"}), ("weights", {"weights": {"b": 1}}),
            ("promote", {"variant": "b"}),
        )
    },
}  # fmt: skip
# What a case sends; {model}, {request}, {file}, {batch} become a thing of another's, or none.
CASES: dict[tuple[str, str], dict[str, Any]] = {
    **{
        ("post", path.lstrip("/")): {"json": {**body, "model": "{model}"}}
        for path, body in ASK.items()
    },
    ("post", "v1/feedback"): {"json": {"request_id": "{request}", "rating": "up"}},
    ("post", "v1/events"): {"json": {"name": "x", "value": 1, "request_id": "{request}"}},
    ("post", "v1/auth/token"): {"json": {}},
    ("post", "v1/auth/token/refresh"): {"json": {"refresh_token": "x"}},
    ("post", "v1/auth/token/revoke"): {"json": {"token": "x"}},
    ("get", "v1/models"): {},
    ("get", "v1/models/<path:name>"): {"path": "v1/models/{model}"},
    ("get", "v1/files"): {},
    ("post", "v1/files"): FORM,
    ("get", "v1/files/<str:file_id>"): {"path": "v1/files/{file}"},
    ("delete", "v1/files/<str:file_id>"): {"path": "v1/files/{file}"},
    ("get", "v1/files/<str:file_id>/content"): {"path": "v1/files/{file}/content"},
    ("get", "v1/batches"): {},
    ("post", "v1/batches"): {"json": BATCH},
    ("get", "v1/batches/<str:batch_id>"): {"path": "v1/batches/{batch}"},
    ("post", "v1/batches/<str:batch_id>/cancel"): {"path": "v1/batches/{batch}/cancel"},
    **MANAGEMENT,
}
# Says the same to everyone, and asks for no token.
OPEN = {("get", "v1/openapi.json"), ("get", "v1/auth/jwks.json")}
OWN = {
    ("get", "v1/models"), ("get", "v1/files"), ("post", "v1/files"), ("get", "v1/batches"),
    ("post", "v1/auth/token"),
}  # fmt: skip
# Of whatever scopes there are: that to manage is everybody's, though it gives nothing by itself.
EXCHANGE = ("post", "v1/auth/token")
# Asks for a token in the body, whoever sends it.
BY_BODY = {("post", "v1/auth/token/refresh"), ("post", "v1/auth/token/revoke")}
NAMES_A_THING = sorted(set(CASES) - OWN - BY_BODY)


def doors() -> set[tuple[str, str]]:
    found = set()
    for path, pattern in walk("config.doors"):
        view = pattern.callback.view_class  # type: ignore[attr-defined]
        found |= {(name, path) for name in view.http_method_names if hasattr(view, name)}
    return found


def scope_of(case: tuple[str, str]) -> str | None:
    """None: no scope helps, because of a tenant's roles none leads to it."""
    if case[1].startswith(MANAGED):
        return None
    return "batches" if case[1].startswith(("v1/files", "v1/batches")) else "inference"


def filled(value: Any, things: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: filled(each, things) for key, each in value.items()}
    return value.format(**things) if isinstance(value, str) and "{" in value else value


async def ask(
    http: httpx.AsyncClient, case: tuple[str, str], things: dict[str, str], secret: str
) -> httpx.Response:
    method, path = case
    sent = CASES[case]
    body = filled(sent["json"], things) if "json" in sent else None
    return await http.request(
        method,
        "/" + filled(sent.get("path", path), things),
        json=body,
        files=sent.get("files"),
        data=sent.get("data"),
        headers={"Authorization": f"Bearer {secret}"},
    )


def test_every_door_is_in_the_matrix() -> None:
    assert doors() == set(CASES) | OPEN


@pytest.fixture
async def theirs(
    http: httpx.AsyncClient, runtime: GatewayRuntime, token: ApiToken
) -> dict[str, str]:
    """A route, a file and a batch of one tenant alone."""
    await http.get("/v1/models")
    route = await database_hop(Route.objects.get)
    await database_hop(
        route_update, route=route, actor=SYSTEM, is_restricted=True, tenants=[token.tenant]
    )

    def is_known() -> bool:
        target = runtime.table.snapshot.routes.get(MODEL)
        return target is not None and target.audience is not None

    await wait_until_async("the restriction to be known", is_known)
    file: UploadedFile = await database_hop(lambda: UploadedFileFactory(tenant=token.tenant))
    batch: Batch = await database_hop(lambda: BatchFactory(tenant=token.tenant, running=True))
    record = await database_hop(lambda: UsageRecordFactory(tenant_id=token.tenant_id))
    return {
        "model": MODEL,
        "request": record.request_id,
        "file": file.file_id,
        "batch": batch.batch_id,
        **await database_hop(_of_the_platform),
    }


def _of_the_platform() -> dict[str, str]:
    return {
        "catalogued": ModelVersionFactory(model__name="catalogued-model").model.name,
        "import": ImportJobFactory().job_id,
        "run": str(VerificationRunFactory(pk=90071992).pk),
        "deployment": DeploymentFactory(name="deployment-theirs").name,
        "rollout": str(RolloutFactory(pk=90071993, open=True).pk),
        "node": NodeFactory(name="node-theirs").name,
        "experiment": ExperimentFactory(name="experiment-theirs").name,
        "judge": JudgeFactory(name="judge-theirs").name,
    }


def nothing_like(things: dict[str, str]) -> dict[str, str]:
    return {name: thing[:-4] + "zzzz" for name, thing in things.items()}


def state() -> dict[str, list[Any]]:
    models: list[Any] = [UploadedFile, Batch, UsageRecord, TokenFamily, Route, AuditEvent]
    models += [MetricEvent]
    models += [Judge, Experiment, Rollout, Deployment, ImportJob, ModelVersion, RegisteredModel]
    models += [VerificationRun]
    return {model.__name__: list(all_of(model).order_by("pk").values()) for model in models}


@pytest.mark.parametrize("role", [None, *roles()])
async def test_what_another_tenant_has_is_not_there(
    http: httpx.AsyncClient, theirs: dict[str, str], role: str | None
) -> None:
    member = await database_hop(lambda: MembershipFactory(role=role))
    stranger = await database_hop(
        lambda: ApiTokenFactory(
            tenant=member.tenant,
            owner=None if role is None else member.user,
            scopes=list(SCOPES),
        )
    )
    scopes = set(SCOPES) if role is None else await database_hop(_scopes_of, role)
    before = await database_hop(state)
    missing = nothing_like(theirs)
    for case in NAMES_A_THING:
        answer = await ask(http, case, theirs, stranger.secret)
        nothing = await ask(http, case, missing, stranger.secret)
        expected = 404 if scope_of(case) in scopes else 403
        assert (case, answer.status_code) == (case, expected)
        assert nothing.status_code == expected
        said = answer.text
        for name, thing in theirs.items():
            said = said.replace(thing, missing[name])
        assert said == nothing.text, case
    assert await database_hop(state) == before


@pytest.mark.parametrize("role", roles())
async def test_lists_hold_ones_own_alone(
    http: httpx.AsyncClient, theirs: dict[str, str], role: str
) -> None:
    member = await database_hop(lambda: MembershipFactory(role=role))
    token = await database_hop(
        lambda: ApiTokenFactory(tenant=member.tenant, owner=member.user, scopes=list(SCOPES))
    )
    scopes = await database_hop(_scopes_of, role)
    for case in sorted(OWN):
        answer = await ask(http, case, theirs, token.secret)
        is_open = scope_of(case) in scopes or case == EXCHANGE
        assert (case, answer.status_code) == (case, 200 if is_open else 403)
        if case[0] == "get" and answer.status_code == 200:
            assert answer.json()["data"] == []
    for case in sorted(BY_BODY):
        assert (case, (await ask(http, case, theirs, token.secret)).status_code) == (case, 401)


async def test_without_a_token_nothing_is_said(
    http: httpx.AsyncClient, theirs: dict[str, str]
) -> None:
    for case in sorted(CASES):
        answer = await ask(http, case, theirs, "sk-nano-" + "x" * 43)
        assert (case, answer.status_code) == (case, 401)


def _scopes_of(role: str) -> set[str]:
    pairs = Role.objects.get(slug=role).permissions.values_list(
        "content_type__app_label", "codename"
    )
    held = {f"{app}.{codename}" for app, codename in pairs}
    return {scope for scope, needed in SCOPES.items() if needed <= held}
