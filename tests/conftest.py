"""Fixtures for every test. Rows come from tests.factories, processes from tests.processes."""

import gc
import os
from collections import Counter
from collections.abc import Iterator
from contextvars import copy_context
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from _pytest import runner
from django.conf import settings
from django.test import Client, TransactionTestCase
from httpx._transports import default as httpx_transports
from hypothesis import settings as hypothesis_settings

from apps.audit.types import Actor
from apps.core.tenancy import every_tenant
from apps.rbac.models import User
from tests.emptying import fixture_teardown
from tests.factories import UserFactory
from tests.object_storage import object_server, object_storage
from tests.serve import product
from tests.walls import walled

__all__ = ["object_server", "object_storage", "product"]  # one for all folders together

gc.disable()  # until all is collected
# As the engine process sets it: without, torch's threads burn whole time slices on busy cores.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# Workers side by side share the cores: torch with a thread for each core in each would thrash.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Developers search anew at each run; a submission is judged by the same examples as the last one.
hypothesis_settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis_settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database-only", action="store_true", help="leave out tests that touch no database"
    )
    parser.addoption(
        "--behind-the-wall",
        action="store_true",
        help="connect to PostgreSQL as the application role, from which it hides tenants' rows",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What a test asks for says whether it touches the database, so that no list can go stale;
    a mark says of the few that would show nothing else on another one."""
    if not config.getoption("database_only"):
        return
    others = [item for item in items if not touches_database(item)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if touches_database(item)]


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: looking through its millions of objects for
    garbage, time and again, takes longer than many a test."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Each test has a context of its own. What it leaves there would stay: Django a variable for
    each resolver of addresses that it makes, which every hop between threads then takes along."""
    return copy_context().run(runner.pytest_runtest_protocol, item, nextitem)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids: list[str]) -> None:
    """Of tests that share a name pytest-xdist would run one, and say nothing."""
    if shared := [name for name, n in Counter(ids).items() if n > 1]:
        raise pytest.UsageError(f"several tests have one name, so run them without -n: {shared}")


def touches_database(item: pytest.Item) -> bool:
    if item.get_closest_marker("any_database") is not None:
        return False
    fixtures = getattr(item, "fixturenames", ())
    return item.get_closest_marker("django_db") is not None or any(
        name in fixtures for name in ("db", "transactional_db", "django_db_setup")
    )


@pytest.fixture(scope="session", autouse=True)
def quick_emptying() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", fixture_teardown)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_ssl_context() -> Iterator[None]:
    """Reading the certificates of the world takes 30 ms for each client, and none asks afar."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx_transports, "create_ssl_context", cache(httpx.create_ssl_context))
        yield


@pytest.fixture(scope="session")
def django_db_setup(
    django_db_setup: None, django_db_blocker: Any, pytestconfig: pytest.Config
) -> Iterator[None]:
    if not pytestconfig.getoption("behind_the_wall"):
        yield
        return
    with django_db_blocker.unblock(), walled():
        yield


@pytest.fixture(autouse=True)
def rows_of_tests(pytestconfig: pytest.Config) -> Iterator[None]:
    """Behind the wall a test makes and looks at rows of every tenant; requests begin without."""
    if not pytestconfig.getoption("behind_the_wall"):
        yield
        return
    with every_tenant("a test"):
        yield


@pytest.fixture
def actor() -> Actor:
    """Who acts when it does not matter who."""
    return Actor(kind="user", id=7, label="alice", ip_address="192.0.2.7")


@pytest.fixture
def admin_user(db: None) -> User:
    """A superuser; replaces pytest-django's, whose manager knows no audit."""
    return UserFactory(username="admin", admin=True)


@pytest.fixture
def admin_client(admin_user: User) -> Client:
    client = Client()
    client.force_login(admin_user)
    return client


def pytest_unconfigure() -> None:
    """Threads that still hold the SQLite test database open leave its files behind."""
    for file in Path(settings.VAR_DIR).glob(f"test-{os.getpid()}.sqlite3*"):
        file.unlink(missing_ok=True)
