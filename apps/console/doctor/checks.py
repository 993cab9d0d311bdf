"""Every check, in the order in which an operator reads them."""

from typing import Final

from apps.console.doctor import artifacts, database, host, processes
from apps.console.doctor.findings import DEADLINE_S, Check, Finding, examine, failure

_DATABASE_FIRST: Final = "mend what is said of the database, then look again"

CHECKS: Final = (
    Check(
        name="database",
        look=database.look_at_database,
        remedy="start the database, and see that DATABASE_URL leads to it (or that the file under "
        "VAR can be opened)",
    ),
    Check(
        name="migrations",
        look=database.look_at_migrations,
        remedy=_DATABASE_FIRST,
        needs_database=True,
    ),
    Check(
        name="tenants apart",
        look=database.look_at_tenant_wall,
        remedy=_DATABASE_FIRST,
        needs_database=True,
    ),
    Check(
        name="reservations",
        look=database.look_at_reservations,
        remedy=_DATABASE_FIRST,
        needs_database=True,
    ),
    Check(
        name="cache",
        look=processes.look_at_cache,
        remedy="start the cache, and see that CACHE_URL leads to it: without it requests are "
        "refused",
    ),
    Check(
        name="broker",
        look=processes.look_at_broker,
        remedy="start the broker, and see that CELERY_BROKER_URL leads to it: without it batches "
        "stand still",
    ),
    Check(
        name="worker and beat",
        look=processes.look_at_worker,
        remedy=_DATABASE_FIRST,
        needs_database=True,
    ),
    Check(name="agent", look=processes.look_at_agent, remedy=_DATABASE_FIRST, needs_database=True),
    Check(
        name="engines",
        look=processes.look_at_engines,
        remedy="look at VAR/logs/engine-*.log; restart the engine agent",
        needs_database=True,
    ),
    Check(
        name="artifacts",
        look=artifacts.look_at_storage,
        remedy="see that ARTIFACTS_URL leads to the storage, and that AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY are good for it: without it engines that run go on, and nothing new "
        "is imported or fetched",
    ),
    Check(
        name="node cache",
        look=artifacts.look_at_node_cache,
        remedy=_DATABASE_FIRST,
        needs_database=True,
    ),
    Check(name="models", look=host.look_at_models, remedy=_DATABASE_FIRST, needs_database=True),
    Check(
        name="disks",
        look=host.look_at_disks,
        remedy="see that VAR, MODELS_DIR and FILES_DIR can be read",
    ),
    Check(name="clock", look=host.look_at_clock, remedy="have the clock kept by a time service"),
    Check(
        name="database clock",
        look=host.look_at_database_clock,
        remedy=_DATABASE_FIRST,
        needs_database=True,
    ),
    Check(
        name="versions",
        look=host.look_at_versions,
        remedy="`make clean serve` installs everything anew",
    ),
    Check(
        name="secrets",
        look=host.look_at_secrets,
        remedy="see that VAR can be read by whoever runs the server",
    ),
)


def findings_now(*, deadline_s: float = DEADLINE_S) -> tuple[Finding, ...]:
    """Look at everything; works as far as it can without a database."""
    absent = database.absent_file()
    if absent is None:
        return examine(CHECKS, deadline_s=deadline_s)
    others = [check for check in CHECKS if check.name != "database" and not check.needs_database]
    first = failure(
        "database",
        f"there is no file {absent}",
        "`make serve` makes it; if there was one, `manage.py restore` a backup, or set VAR",
    )
    return (first, *examine(others, deadline_s=deadline_s))
