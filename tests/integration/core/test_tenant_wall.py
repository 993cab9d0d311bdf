"""What PostgreSQL shows the application role, whatever our own code asks for."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import ProgrammingError, connection, transaction

from apps.console.backup.databases import database_dump
from apps.console.doctor.database import look_at_tenant_wall
from apps.core.database_roles import owned_tables, roles_make, wall_look
from apps.core.hop import database_hop
from apps.core.tenancy import every_tenant, nobody_yet, tenants_only
from apps.tenants.models import EndUser, Tenant
from tests.factories import (
    ApiTokenFactory,
    AuditEventFactory,
    BatchFactory,
    EndUserFactory,
    MembershipFactory,
    TenantFactory,
    UsageRecordFactory,
)
from tests.rows import all_of
from tests.walls import APPLICATION, PLATFORM, walled

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif("sqlite" in settings.DATABASES["default"]["ENGINE"], reason="PostgreSQL's"),
]


@pytest.fixture
def two(pytestconfig: pytest.Config, db: None) -> Iterator[tuple[Tenant, Tenant]]:
    """Two tenants with rows in most tables; then the connection is the application role's."""
    with every_tenant("a test"):
        tenants = TenantFactory(), TenantFactory()
        for tenant in tenants:
            token = ApiTokenFactory(tenant=tenant)
            EndUserFactory(tenant=tenant)
            MembershipFactory(tenant=tenant, role="developer")
            UsageRecordFactory(tenant_id=tenant.pk, api_token_id=token.pk)
            AuditEventFactory(tenant_id=tenant.pk)
            BatchFactory(tenant=tenant)
            _meter(f"tenant:{tenant.pk}"), _meter(f"key:{token.pk}"), _meter(f"user:{tenant.pk}:x")
    with nobody_yet():
        if pytestconfig.getoption("behind_the_wall"):
            yield tenants
        else:
            with walled():
                yield tenants


def _meter(scope: str) -> None:
    sql(
        "INSERT INTO metering_meter (scope, period, n_used, n_held) VALUES (%s, 'open', 0, 0)",
        scope,
    )


def sql(statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Past our managers and services, as a mistake or an injection would."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return [] if cursor.description is None else list(cursor.fetchall())


def seen() -> dict[str, int]:
    """How many rows of each table are there to see."""
    counts = {table: sql(f"SELECT count(*) FROM {table}")[0][0] for table in owned_tables()}
    return {table: n for table, n in counts.items() if n}


def test_nobody_named_is_nothing_seen(two: tuple[Tenant, Tenant]) -> None:
    assert sql("SELECT session_user")[0][0] == APPLICATION
    assert seen() == {}
    with transaction.atomic():
        assert seen() == {}
        assert not all_of(EndUser).exists()


def test_only_the_rows_of_who_is_named_are_seen(two: tuple[Tenant, Tenant]) -> None:
    with every_tenant("a test"):
        every = seen()
    assert len(every) >= 9
    for one in two:
        tenants_only((one.pk,))
        mine = seen()
        assert sql("SELECT id FROM tenants_tenant") == [(one.pk,)]
        assert mine["metering_meter"] == 3
        assert set(mine) == set(every)  # something of each table
        assert all(n < every[table] for table, n in mine.items()), (mine, every)
        for table in (
            "tenants_enduser",
            "rbac_apitoken",
            "metering_usagerecord",
            "audit_auditevent",
        ):
            assert {each for (each,) in sql(f"SELECT tenant_id FROM {table}")} == {one.pk}
    tenants_only([each.pk for each in two])
    assert seen()["tenants_enduser"] == 2
    tenants_only(())
    assert seen() == {}


def test_rows_of_another_cannot_be_written(two: tuple[Tenant, Tenant]) -> None:
    one, other = two
    with every_tenant("a test"):
        before = list(all_of(EndUser).order_by("pk").values())
    tenants_only((one.pk,))
    with pytest.raises(ProgrammingError, match="row-level security"):
        EndUserFactory(tenant=other)
    with pytest.raises(ProgrammingError, match="row-level security"):
        sql("UPDATE tenants_enduser SET tenant_id = %s", other.pk)
    sql("UPDATE tenants_enduser SET identifier = 'taken' WHERE tenant_id = %s", other.pk)
    sql("DELETE FROM tenants_enduser WHERE tenant_id = %s", other.pk)
    with every_tenant("a test"):
        assert list(all_of(EndUser).order_by("pk").values()) == before


def test_a_connection_that_served_one_tells_the_next_nothing(two: tuple[Tenant, Tenant]) -> None:
    one, other = two
    n_times, pids = 40, set()
    for tenant in (one, other) * (n_times // 2):
        with nobody_yet():
            tenants_only((tenant.pk,))
            assert sql("SELECT id FROM tenants_tenant") == [(tenant.pk,)]
        assert seen() == {}
        ((pid, role, said),) = sql(
            "SELECT pg_backend_pid(), current_user, current_setting('app.tenants', true)"
        )
        assert (role, said or "") == (APPLICATION, "")
        pids.add(pid)
        connection.close()  # back to the pool
    assert len(pids) < n_times  # one of them, at least, served both
    with every_tenant("a test"):
        assert sql("SELECT current_user") == [(PLATFORM,)]
    assert sql("SELECT current_user") == [(APPLICATION,)]


@pytest.mark.parametrize("begins_with_savepoint", [False, True])
def test_an_error_leaves_nothing_said(
    two: tuple[Tenant, Tenant], begins_with_savepoint: bool
) -> None:
    one, _ = two
    with pytest.raises(ZeroDivisionError), nobody_yet(), transaction.atomic():
        tenants_only((one.pk,))
        assert len(sql("SELECT id FROM tenants_tenant")) == 1
        raise ZeroDivisionError
    with transaction.atomic():
        if begins_with_savepoint:
            transaction.savepoint()
        assert seen() == {}


def test_what_is_said_within_a_transaction_holds_from_there_on(two: tuple[Tenant, Tenant]) -> None:
    one, other = two
    ids = "SELECT id FROM tenants_tenant"
    with transaction.atomic():
        tenants_only((one.pk,))
        assert sql(ids) == [(one.pk,)]
        with every_tenant("a test"):
            assert {(one.pk,), (other.pk,)} <= set(sql(ids))
        assert sql(ids) == [(one.pk,)]
        with pytest.raises(ZeroDivisionError), transaction.atomic(), every_tenant("a test"):
            assert len(sql(ids)) >= 2
            raise ZeroDivisionError
        assert sql(ids) == [(one.pk,)]
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            tenants_only((other.pk,))
            assert sql(ids) == [(other.pk,)]
            raise ZeroDivisionError
        assert sql(ids) == [(other.pk,)]  # what the code says, whatever was rolled back


def test_a_cursor_that_stays_open_shows_the_same(two: tuple[Tenant, Tenant]) -> None:
    one, _ = two
    tenants_only((one.pk,))
    found = list(EndUser.objects.filter(tenant=one).iterator(chunk_size=1))
    assert len(found) == 1
    assert list(all_of(EndUser).iterator(chunk_size=1)) == found


async def test_a_hop_takes_it_along(two: tuple[Tenant, Tenant]) -> None:
    one, _ = two
    tenants_only((one.pk,))
    assert await database_hop(sql, "SELECT id FROM tenants_tenant") == [(one.pk,)]
    with every_tenant("a test"):
        assert len(await database_hop(sql, "SELECT id FROM tenants_tenant")) >= 2
    with nobody_yet():
        assert await database_hop(sql, "SELECT id FROM tenants_tenant") == []


def test_a_backup_has_everybodys_rows(two: tuple[Tenant, Tenant], tmp_path: Path) -> None:
    with every_tenant("a test"):
        wanted = {each.identifier for each in all_of(EndUser)}
    database_dump(connection.settings_dict, tmp_path / "dump")
    command = ["pg_restore", "--data-only", "--table=tenants_enduser", "--file=-"]
    done = subprocess.run([*command, tmp_path / "dump"], capture_output=True, check=True, text=True)
    assert len(wanted) == 2
    assert all(identifier in done.stdout for identifier in wanted)


def test_the_wall_is_seen_to_stand(two: tuple[Tenant, Tenant]) -> None:
    wall = wall_look(platform=PLATFORM)
    assert (wall.role, wall.is_superuser, wall.is_owner) == (APPLICATION, False, False)
    assert (wall.is_member, wall.sees_untold, wall.unguarded) == (True, False, ())
    (finding,) = look_at_tenant_wall()
    assert finding.status == "ok"


def test_the_doctor_says_that_nothing_can_be_seen(
    two: tuple[Tenant, Tenant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "DATABASE_PLATFORM_ROLE", "")
    (finding,) = look_at_tenant_wall()
    assert finding.status == "failure" and "is not set" in finding.seen
    monkeypatch.setattr(settings, "DATABASE_PLATFORM_ROLE", "no_such_role")
    (finding,) = look_at_tenant_wall()
    assert finding.status == "failure" and "cannot act as no_such_role" in finding.seen


def test_the_doctor_says_when_there_is_none(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pytestconfig.getoption("behind_the_wall"):
        pytest.skip("there is one")
    roles_make(application=APPLICATION, platform=PLATFORM)
    (finding,) = look_at_tenant_wall()
    assert finding.status == "warning" and "database_roles" in finding.remedy
    monkeypatch.setattr(settings, "DATABASE_PLATFORM_ROLE", PLATFORM)
    (finding,) = look_at_tenant_wall()
    assert finding.status == "warning" and "superuser" in finding.seen


@pytest.mark.parametrize(
    ("application", "platform", "said"),
    [
        ("one", "one", "two"),
        ("a; DROP TABLE tenants_tenant", "two", "no name of a role"),
        (None, PLATFORM, "superuser"),
    ],
)
def test_roles_that_would_be_no_wall_are_refused(
    pytestconfig: pytest.Config, application: str | None, platform: str, said: str
) -> None:
    if pytestconfig.getoption("behind_the_wall"):
        pytest.skip("only the tables' owner makes roles")
    application = application or sql("SELECT session_user")[0][0]
    with pytest.raises(CommandError, match=said):
        call_command("database_roles", application=application, platform=platform)
    assert sql("SELECT 1 FROM pg_roles WHERE rolname IN ('one', 'two')") == []
