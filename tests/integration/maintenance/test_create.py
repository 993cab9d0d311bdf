"""``create_tenant`` and ``create_token`` as an operator types them."""

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.console.options import refusals
from apps.rbac.models import ApiToken
from apps.rbac.selectors import principal_of_secret
from apps.tenants.models import Tenant
from apps.tenants.services import plans_seed
from tests.factories import TenantFactory
from tests.rows import all_of

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def plans(db: None) -> None:
    plans_seed()


def run(*arguments: str) -> tuple[str, str]:
    """Return what it wrote to standard output and to standard error."""
    out, err = StringIO(), StringIO()
    call_command(*arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_a_tenant_is_made_and_audited() -> None:
    out, err = run("create_tenant", "acme", "--name", "Acme Inc.", "--plan", "pro")
    assert (out, err) == ("Made the tenant acme (Acme Inc.) on the plan pro.\n", "")
    tenant = Tenant.objects.get()
    assert (tenant.slug, tenant.name, tenant.plan.slug) == ("acme", "Acme Inc.", "pro")
    event = all_of(AuditEvent).get()
    assert (event.action, event.actor_label, event.tenant_id) == (
        "tenant.created",
        "system",
        tenant.pk,
    )


def test_a_tenant_needs_no_more_than_a_slug() -> None:
    run("create_tenant", "acme", "--tokens-per-day", "5000", "--allowed-routes", "small", "tall")
    tenant = Tenant.objects.get()
    assert (tenant.name, tenant.plan.slug, tenant.tokens_per_day) == ("acme", "free", 5000)
    assert tenant.allowed_routes == "small\ntall"
    assert not tenant.allows_judging


def test_a_tenant_lets_its_answers_be_judged_where_somebody_says_so() -> None:
    run("create_tenant", "acme", "--allows-judging")
    assert Tenant.objects.get().allows_judging
    assert all_of(AuditEvent).get().changes["allows_judging"] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a b"], "SLUG: Enter a valid .slug."),
        (["taken"], "SLUG: Tenant with this Slug already exists."),
        (["acme", "--name", ""], "--name: This field cannot be blank."),
        (["acme", "--name", "x" * 121], "--name: Ensure this value has at most 120"),
        (["acme", "--plan", "gold"], "--plan: there is no plan 'gold'; there are: .*enterprise"),
        (["acme", "--tokens-per-day", "many"], "--tokens-per-day: 'many' is not a whole number"),
        (["acme", "--tokens-per-day", "-1"], "--tokens-per-day: '-1' is not a whole number"),
        (["acme", "--requests-per-minute", "0"], "--requests-per-minute: Ensure .* equal to 1"),
        (["acme", "--tokens-per-month", "9" * 19], "--tokens-per-month: Ensure this value is less"),
    ],
)
def test_a_bad_tenant_is_refused_by_the_arguments_name(arguments: list[str], says: str) -> None:
    TenantFactory(slug="taken")
    with pytest.raises(CommandError, match=f"^{says}") as caught:
        run("create_tenant", *arguments)
    assert caught.value.returncode == 1
    assert Tenant.objects.count() == 1
    assert not all_of(AuditEvent).exists()


def test_a_token_is_shown_once_and_works() -> None:
    tenant = TenantFactory(slug="acme")
    out, err = run("create_token", "acme", "nightly job")
    secret = out.removesuffix("\n")
    token = all_of(ApiToken).get()
    assert principal_of_secret(secret).api_token_id == token.pk
    assert (token.tenant, token.name, token.expires_at) == (tenant, "nightly job", None)
    said = f"Made the token nightly job ({token.prefix}…) of acme, good until it is revoked.\n"
    assert err == said
    event = all_of(AuditEvent).get()
    assert (event.action, event.actor_label) == ("api_token.issued", "system")
    assert secret not in f"{err}{event.changes}{event.object_label}"


def test_a_token_carries_a_time_and_limits() -> None:
    TenantFactory(slug="acme")
    before = timezone.now()
    arguments: dict[str, Any] = {
        "--requests-per-minute": "30",
        "--tokens-per-day": "1000",
        "--tokens-per-month": "20000",
        "--max-concurrent-requests": "2",
        "--max-context-tokens": "512",
        "--expires-in": "90d",
    }
    flat = [word for pair in arguments.items() for word in pair]
    lists = ["--allowed-routes", "small", "--scopes", "inference"]
    lists += ["--allowed-networks", "192.0.2.0/24", "2001:db8::1"]
    run("create_token", "acme", "job", *flat, *lists)
    token = all_of(ApiToken).get()
    assert token.scopes == ["inference"]
    assert token.allowed_networks == "192.0.2.0/24\n2001:db8::1"
    assert token.expires_at is not None
    assert before <= token.expires_at - timedelta(days=90) <= timezone.now()
    assert token.requests_per_minute == 30
    assert (token.tokens_per_day, token.tokens_per_month) == (1000, 20_000)
    assert (token.max_concurrent_requests, token.max_context_tokens) == (2, 512)
    assert token.allowed_routes == "small"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nobody", "job"], "TENANT: there is no tenant 'nobody'"),
        (["acme", ""], "NAME: This field cannot be blank."),
        (["acme", "x" * 121], "NAME: Ensure this value has at most 120"),
        (["acme", "job", "--expires-in", "soon"], "--expires-in: 'soon' is not a duration such as"),
        (["acme", "job", "--expires-in", "0d"], "--expires-in: '0d' is not a duration"),
        (["acme", "job", "--expires-in", "-1d"], "--expires-in: '-1d' is not a duration"),
        (["acme", "job", "--expires-in", "9999999w"], "--expires-in: '9999999w' is too long"),
        (["acme", "job", "--scopes", "manage"], "--owner: A token for 'manage' belongs to a"),
        (["acme", "job", "--owner", "nobody"], "--owner: there is no user 'nobody'"),
        (["acme", "job", "--scopes", "all"], "--scopes: A list of one or more of: inference, "),
        (["acme", "job", "--allowed-networks", "a/8"], "--allowed-networks: Not an address or a"),
        (["acme", "job", "--max-context-tokens", "0"], "--max-context-tokens: Ensure"),
        (["acme", "job", "--tokens-per-day", "1e3"], "--tokens-per-day: '1e3' is not a whole"),
    ],
)
def test_a_bad_token_is_refused_by_the_arguments_name(arguments: list[str], says: str) -> None:
    TenantFactory(slug="acme")
    out = StringIO()
    # A value that begins with a dash is written with the option, as argparse wants it.
    words = (
        [f"--expires-in={arguments[3]}"] if arguments[2:3] == ["--expires-in"] else arguments[2:]
    )
    with pytest.raises(CommandError, match=f"^{says}") as caught:
        call_command("create_token", *arguments[:2], *words, stdout=out)
    assert caught.value.returncode == 1
    assert out.getvalue() == ""
    assert not all_of(ApiToken).exists()
    assert not all_of(AuditEvent).exists()


def test_a_database_that_is_away_is_said_in_one_line() -> None:
    with (
        pytest.raises(CommandError, match=r"^the database: no such table: x$") as caught,
        refusals({}),
    ):
        raise OperationalError("no such table: x\nLINE 1: …")
    assert caught.value.returncode == 1
