"""What tests of the guided page share: a second version beside a first, and what its steps post."""

import re
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.deployments.models import Deployment
from apps.registry.models import ImportJob, ModelVersion, VerificationRun
from apps.routing.models import Route, RouteTarget
from tests.factories import (
    DeploymentFactory,
    DeviceFactory,
    EngineProcessFactory,
    ModelVersionFactory,
    RegisteredModelFactory,
    ReplicaFactory,
    RouteFactory,
)
from tests.rows import all_of

MIB = 2**20
STEPS = ("import", "verify", "deploy", "route", "watch")
DEPLOY = {
    "step": "deploy", "deploy-name": "chat-v2", "deploy-device_class": "auto",
    "deploy-quantization": "none", "deploy-kv_cache_tokens": "2048", "deploy-dtype": "auto",
    "deploy-min_replicas": "1", "deploy-max_replicas": "1",
}  # fmt: skip
# Looks at everything, and presses nothing.
VIEWS = (
    "view_modelversion", "view_importjob", "view_verificationrun", "view_deployment", "view_route",
    "view_usagerecord",
)  # fmt: skip


def guide(**query: Any) -> str:
    named = "&".join(f"{name}={getattr(row, 'pk', row)}" for name, row in query.items())
    return f"{reverse('admin:guide')}?{named}".rstrip("?")


def marks(html: str) -> dict[str, str]:
    return dict(re.findall(r'data-step="(\w+)" data-mark="(\w+)"', html))


def shown(client: Client, **query: Any) -> str:
    response = client.get(guide(**query))
    assert response.status_code == 200
    return response.content.decode()


def state() -> dict[str, list[Any]]:
    models = (ImportJob, ModelVersion, VerificationRun, Deployment, Route, RouteTarget, AuditEvent)
    return {model.__name__: list(all_of(model).order_by("pk").values()) for model in models}


@pytest.fixture(autouse=True)
def roots(db: None, settings: Any, tmp_path: Path) -> Path:
    """Where imports come from, with one file; and a machine with room for 1,000 MiB."""
    settings.IMPORT_ROOTS = [tmp_path / "imports"]
    settings.MODELS_DIR = tmp_path / "models"
    (tmp_path / "imports").mkdir()
    (tmp_path / "imports" / "weights.gguf").write_bytes(b"GGUF")
    DeviceFactory(node__name="box", free_bytes=1000 * MIB)
    return tmp_path


@pytest.fixture
def version() -> ModelVersion:
    """The second of a model whose first has a deployment and a route; verified, and of 100 MiB."""
    model = RegisteredModelFactory(name="chat")
    first = ModelVersionFactory(model=model, version=1, n_parameters=50 * MIB)
    deployment = DeploymentFactory(name="chat-v1", model_version=first)
    engine = EngineProcessFactory(ready=True, name="chat-v1-0", info={"dtype": "bfloat16"})
    ReplicaFactory(deployment=deployment, index=0, engine_process=engine)
    RouteFactory(name="chat", deployment=deployment)
    made: ModelVersion = ModelVersionFactory(
        model=model, version=2, n_parameters=50 * MIB, stage="verified"
    )
    return made


@pytest.fixture
def deployment(version: ModelVersion) -> Deployment:
    """Of the second version, and starting."""
    made: Deployment = DeploymentFactory(name="chat-v2", model_version=version)
    return made


def weights_form(deployment: Deployment, **weights: int) -> dict[str, Any]:
    """What the step of the route posts."""
    rows = list(RouteTarget.objects.select_related("deployment").order_by("pk"))
    form: dict[str, Any] = {"step": "route", "targets-INITIAL_FORMS": len(rows)}
    names = [row.deployment.name for row in rows]
    if deployment.name not in names:
        names.append(deployment.name)
    form["targets-TOTAL_FORMS"] = len(names)
    for n, name in enumerate(names):
        form[f"targets-{n}-deployment"] = Deployment.objects.get(name=name).pk
        form[f"targets-{n}-weight"] = weights[name.replace("-", "_")]
        form[f"targets-{n}-fallback_order"] = ""
        form[f"targets-{n}-route"] = Route.objects.get(name="chat").pk
        if n < len(rows):
            form[f"targets-{n}-id"] = rows[n].pk
    return form
