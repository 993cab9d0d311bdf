"""Every page of the admin x every role in one tenant x another tenant's things. The pages are those
that exist: one that names a thing in a way that is not known here fails the test. Of the roles
those between others are the long form's."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from django.apps import apps
from django.db.models import Model
from django.test import Client
from django.utils import timezone

from apps.metering.models import UsageRollup
from apps.rbac.builtin_roles import BUILTIN_ROLES
from apps.rbac.models import Role, User
from apps.tenants.models import Tenant
from tests.factories import (
    ApiTokenFactory,
    AuditEventFactory,
    BatchFactory,
    EndUserFactory,
    FailedSignInFactory,
    GroupMappingFactory,
    ImportJobFactory,
    MembershipFactory,
    MetricEventFactory,
    ModelVersionFactory,
    NodeFactory,
    PlanFactory,
    QuarantinedRequestFactory,
    RegisteredModelFactory,
    RemoteServerFactory,
    ReplicaFactory,
    RoleFactory,
    RolloutFactory,
    RouteFactory,
    TenantFactory,
    TokenFamilyFactory,
    UploadedFileFactory,
    UsageRecordFactory,
    VerificationRunFactory,
)
from tests.factories.experiments import AssignmentFactory, ExperimentFactory, LayerFactory
from tests.factories.judging import JudgeFactory
from tests.integration.isolation.roles import roles
from tests.integration.isolation.urls import walk
from tests.rows import all_of

pytestmark = pytest.mark.django_db

MARK: Final = "zebra"
ABSENT: Final = "987654"
# How the framework's own pages name what they are about; they lead nowhere or to a list.
FRAMEWORK: Final = ("<path:content_type_id>", "(?P<app_label>", "(?P<url>")
# Pages of nobody's things: the person's own session, and what is for everyone in the admin.
OPEN: Final = {
    None, "index", "overview", "playground", "playground_models", "login", "password_change",
    "password_change_done", "jsi18n", "search", "autocomplete", "api-reference", "login_code",
    "account", "two_factor_enrol", "two_factor_remove", "backup_codes",
}  # fmt: skip
QUERIES: Final[dict[str | None, dict[str, str]]] = {
    "search": {"s": MARK},
    "autocomplete": {
        "app_label": "rbac", "model_name": "apitoken", "field_name": "tenant", "term": "",
    },
}  # fmt: skip
# Tables in which a look leaves a trace of its own.
USAGE: Final = {"metering_usage", "metering_usage_csv"}
TRACES: Final = {"sessions.Session"}
PLATFORM: Final[dict[str, Callable[[], Any]]] = {
    "tenants_plan": PlanFactory,
    "rbac_role": RoleFactory,
    "rbac_groupmapping": lambda: GroupMappingFactory(group=f"{MARK}-group"),
    "registry_registeredmodel": RegisteredModelFactory,
    "registry_modelversion": ModelVersionFactory,
    "registry_verificationrun": VerificationRunFactory,
    "registry_importjob": lambda: ImportJobFactory(source=f"{MARK}.gguf"),
    "deployments_remoteserver": lambda: RemoteServerFactory(name=MARK),
    "engines_node": lambda: NodeFactory(name=MARK),
    "routing_route": lambda: RouteFactory(name=f"{MARK}/model", is_restricted=True),
    "experiments_experiment": lambda: ExperimentFactory(name=f"{MARK}-experiment", stopped=True),
    "experiments_layer": lambda: LayerFactory(name=f"{MARK}-layer"),
    "judging_judge": lambda: JudgeFactory(name=f"{MARK}-judge"),
    "experiments_assignment": lambda: AssignmentFactory(subject=MARK.ljust(16, "0")),
    "rollouts_rollout": lambda: RolloutFactory(
        route__name=f"{MARK}/rolled", route__is_restricted=True, open=True
    ),
}


@pytest.fixture
def things() -> dict[str, Model]:
    """What is of another tenant, and of the platform, by the model of its pages."""
    tenant: Tenant = TenantFactory(name=f"{MARK} inc", slug=MARK)
    member = MembershipFactory(tenant=tenant, user__username=f"{MARK}-ann")
    replica = ReplicaFactory()
    UsageRollup.objects.create(
        granularity="day",
        period_start=timezone.now().replace(hour=0, minute=0, second=0, microsecond=0),
        tenant_id=tenant.pk,
        api_token_id=0,
        route_name=f"{MARK}/model",
        model_version_id=1,
        n_requests=1,
    )
    return {
        "tenants_tenant": tenant,
        "tenants_membership": member,
        "tenants_enduser": EndUserFactory(tenant=tenant, identifier=f"{MARK}-end-user"),
        "rbac_user": member.user,
        "sign_in_person": member.user,
        "sign_in_failedsignin": FailedSignInFactory(username=f"{MARK}-ann"),
        "rbac_apitoken": ApiTokenFactory(tenant=tenant, name=f"{MARK}-token"),
        "rbac_tokenfamily": TokenFamilyFactory(
            api_token__tenant=tenant, public_id=f"family-{MARK}"
        ),
        "metering_usagerecord": UsageRecordFactory(
            tenant_id=tenant.pk, request_id=f"chatcmpl-{MARK}"
        ),
        "feedback_metricevent": MetricEventFactory(
            tenant_id=tenant.pk, request_id=f"chatcmpl-{MARK}", comment=f"{MARK} said so"
        ),
        "batches_batch": BatchFactory(tenant=tenant, batch_id=f"batch-{MARK}", running=True),
        "batches_uploadedfile": UploadedFileFactory(tenant=tenant, filename=f"{MARK}.jsonl"),
        "audit_auditevent": AuditEventFactory(
            tenant_id=tenant.pk, object_label=f"{MARK}-event", actor_label=f"{MARK}-ann"
        ),
        "deployments_deployment": replica.deployment,
        "deployments_replica": replica,
        "engines_engineprocess": replica.engine_process,
        "engines_quarantinedrequest": QuarantinedRequestFactory(
            tenant=tenant, request_id=f"chatcmpl-{MARK}"
        ),
        **{name: make() for name, make in PLATFORM.items()},
    }


def person(role: str) -> Client:
    """Somebody of the staff with a role in a tenant of their own."""
    user: User = MembershipFactory(role=role, user__is_staff=True, user__username="bob").user
    client = Client()
    client.force_login(user)
    return client


def pages() -> Iterator[tuple[str, str | None]]:
    """Yield each page's route and name, those of the framework's own ways left out."""
    for route, pattern in walk("config.urls"):
        if not any(mark in route for mark in FRAMEWORK) and pattern.name != "logout":
            yield route, pattern.name


def pages_of_things(things: dict[str, Model]) -> Iterator[tuple[str, str, str]]:
    """Yield the address of each page of a thing, of the same page of none, and the thing's key."""
    for route, _ in pages():
        if "<" not in route:
            continue
        if "<str:request_id>" in route:
            key = str(things["metering_usagerecord"])
            yield *("/" + route.replace("<str:request_id>", each) for each in (key, ABSENT)), key
            continue
        (mark,) = (each for each in ("<path:object_id>", "<id>") if each in route)
        _, app, model, *_ = route.split("/")
        pk = str(things[f"{app}_{model}"].pk)
        yield "/" + route.replace(mark, pk), "/" + route.replace(mark, ABSENT), pk


def state() -> dict[str, list[Any]]:
    return {
        model._meta.label: list(all_of(model).order_by("pk").values())
        for model in apps.get_models()
        if model._meta.label not in TRACES and not model._meta.proxy
    }


def changed(before: dict[str, list[Any]]) -> set[str]:
    return {name for name, rows in state().items() if rows != before[name]}


def said(response: Any) -> str:
    body = "" if response.streaming else response.content.decode()
    return f"{response.get('Location', '')} {body}"


@pytest.mark.parametrize("role", roles())
def test_what_another_tenant_has_is_not_there(role: str, things: dict[str, Model]) -> None:
    client = person(role)
    before = state()
    found = list(pages_of_things(things))
    assert len(found) > 70
    for there, absent, pk in found:
        # A dialog's button, a confirmation and a thumb post so.
        posted = {"_form_submitted": "True", "post": "yes", "rating": "up"}
        for method, form in (("get", {}), ("post", posted)):
            answer, nothing = (getattr(client, method)(each, form) for each in (there, absent))
            assert answer.status_code in (301, 302, 403, 404, 405), (method, there)
            assert answer.status_code == nothing.status_code, (method, there)
            location = answer.get("Location", "")
            assert location.replace(f"/{pk}/", f"/{ABSENT}/").replace(
                f"object_id={pk}", f"object_id={ABSENT}"
            ) == nothing.get("Location", ""), there
            assert MARK not in said(answer), (method, there)
            client.cookies.pop("messages", None)  # they name the key that was asked for
    assert changed(before) == set()


@pytest.mark.parametrize("role", roles())
def test_lists_show_nothing_of_another_tenant(role: str, things: dict[str, Model]) -> None:
    client = person(role)
    shown = set()
    for route, name in pages():
        if "<" in route:
            continue
        response = client.get("/" + route, QUERIES.get(name, {}))
        assert response.status_code in (200, 302, 403), route
        if response.status_code == 200:
            shown.add(name)
            assert MARK not in said(response).replace(f'value="{MARK}"', ""), route
    of_tenants = set(things) - set(PLATFORM) - {
        "rbac_user", "sign_in_person", "sign_in_failedsignin",
        "deployments_deployment", "deployments_replica", "engines_engineprocess",
    }  # fmt: skip
    assert shown - OPEN - USAGE <= {
        f"{name}_{page}"
        for name in of_tenants
        for page in ("changelist", "add", "new_service_account")
    }
    if role == "owner":
        assert {f"{name}_changelist" for name in of_tenants} <= shown


@pytest.mark.parametrize("role", roles())
def test_nothing_is_made_in_another_tenant(role: str, things: dict[str, Model]) -> None:
    client = person(role)
    me, viewer = User.objects.get(username="bob").pk, Role.objects.get(slug="viewer").pk
    tenant = things["tenants_tenant"].pk
    before = state()
    refused = set()
    for path, form in (
        ("rbac/apitoken/add", {"name": "x", "scopes": ["inference"]}),
        ("rbac/apitoken/add", {"name": "x", "scopes": ["inference"], "owner": me}),
        ("tenants/enduser/add", {"identifier": "x"}),
        ("tenants/membership/add", {"person": "bob", "role": viewer}),
        ("tenants/membership/new_service_account", {"name": "spy", "role": viewer}),
        ("tenants/tenant/add", {"name": "x", "slug": "x"}),
        ("rbac/user/add", {"username": "x"}),
        ("rbac/role/add", {"name": "x", "slug": "x"}),
    ):
        response = client.post(f"/admin/{path}/", {"tenant": tenant, **form})
        refused.add(response.status_code)
        if response.status_code == 200:  # the form says what is wrong
            assert "Select a valid choice" in response.content.decode(), path
    assert refused <= {200, 403}
    assert changed(before) == set()


def test_these_pages_would_show_it(admin_client: Client, things: dict[str, Model]) -> None:
    """To whoever may see everything: else the tests above would prove nothing."""
    shown = set()
    for route, name in pages():
        if "<" not in route and name in (*(f"{each}_changelist" for each in things), *USAGE):
            shown |= {name} if MARK in said(admin_client.get("/" + route)) else set()
    assert shown >= {
        "tenants_tenant_changelist", "tenants_membership_changelist", "tenants_enduser_changelist",
        "rbac_apitoken_changelist", "metering_usagerecord_changelist", "batches_batch_changelist",
        "batches_uploadedfile_changelist", "audit_auditevent_changelist",
        "feedback_metricevent_changelist",
        "routing_route_changelist", "sign_in_person_changelist", "sign_in_failedsignin_changelist",
        *USAGE,
    }  # fmt: skip
    assert f"{MARK} inc" in said(admin_client.get(f"/admin/requests/chatcmpl-{MARK}/"))


def test_the_roles_at_either_end_are_always_tried() -> None:
    """Whoever may do most, and each who may do less than nobody else: a new role is tried, unless
    it lies between others."""
    always = [each for each in roles() if isinstance(each, str)]
    assert always == ["owner", "developer", "viewer"]
    assert len(roles()) == len(BUILTIN_ROLES)
