"""Reads of deployments and of the replicas that the engine agent keeps."""

from typing import TYPE_CHECKING, Any, Final

from django.db.models import F, Prefetch, QuerySet
from guardian.shortcuts import get_objects_for_user

from apps.core.exceptions import NotFound
from apps.deployments.models import Deployment, RemoteServer, Replica
from apps.deployments.types import REMOTE_VERSION_ID, LiveState, ReplicaEndpoint
from apps.engines.selectors import EngineState, devices_described
from apps.engines.types import RemoteTarget

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apps.engines.models import EngineProcess
    from apps.rbac.models import User

_MOST_REPLICAS: Final = 16


def replica_endpoints() -> list[ReplicaEndpoint]:
    """Return the replicas that take requests now, in one query.

    A deployment that was just told to drain or to stop is left out before its engines have ended.
    """
    rows = Replica.objects.filter(
        engine_process__state=EngineState.READY,
        deployment__desired_state=Deployment.DesiredState.RUNNING,
        index__lt=F("deployment__n_replicas"),
    ).select_related("deployment__remote", "engine_process")
    return [
        ReplicaEndpoint(
            deployment_id=row.deployment_id,
            deployment_name=row.deployment.name,
            model_version_id=row.deployment.model_version_id or REMOTE_VERSION_ID,
            replica_index=row.index,
            engine_name=row.engine_process.name,
            epoch=row.engine_process.epoch,
            socket_path=row.engine_process.socket_path,
            remote=remote_target(row.deployment),
        )
        for row in rows.order_by("deployment_id", "index")
    ]


def remote_target(deployment: Deployment) -> RemoteTarget | None:
    """Return what is asked of a remote server; None of a deployment that runs here."""
    server = deployment.remote
    if server is None:
        return None
    return RemoteTarget(
        base_url=server.base_url,
        model=deployment.remote_model,
        task=deployment.task,
        context_length=deployment.context_length,
        key_sealed=server.api_key_sealed,
        ca_file=server.ca_file,
        max_concurrency=server.max_concurrency,
        connect_timeout_s=server.connect_timeout_s,
        first_byte_timeout_s=server.first_byte_timeout_s,
        idle_timeout_s=server.idle_timeout_s,
        revision=deployment.generation,
    )


def deployments_all() -> list[Deployment]:
    """Return every deployment with its model versions, its replicas and their devices, in three
    queries."""
    return list(_with_devices())


def replicas_of(deployment: Deployment) -> list[Replica]:
    """Return its replicas with their engine processes and devices, in two queries."""
    rows = Replica.objects.filter(deployment_id=deployment.pk).select_related("engine_process")
    return list(rows.prefetch_related(on_devices()).order_by("index"))


def on_devices() -> "Prefetch[str, QuerySet[Any], str]":
    """Fetch replicas along with their devices and the machines of these, in one query more."""
    return Prefetch("devices", queryset=devices_described())


def deployments_running() -> list[Deployment]:
    """Return what should run, each with its model versions, in one query."""
    return list(
        Deployment.objects.filter(desired_state=Deployment.DesiredState.RUNNING).select_related(
            "model_version__model", "draft_version__model", "remote"
        )
    )


def live_state(deployment: Deployment) -> LiveState:
    """Judge a deployment that came with its replicas, as from ``deployments_all``: no query."""
    state = EngineState
    replicas = deployment.replicas.all()
    processes = [replica.engine_process for replica in replicas]
    n_ready = sum(process.state == state.READY for process in processes)
    failed = [process for process in processes if process.state == state.FAILED]
    looping = [process for process in processes if process.state == state.CRASH_LOOP]
    failing = [
        *failed,
        *looping,
        *(p for p in processes if p.state in (state.BACKING_OFF, state.UNRESPONSIVE)),
    ]
    refusals = [
        each.refusal for each in replicas if each.refusal and each.index < deployment.n_replicas
    ]
    if deployment.desired_state != Deployment.DesiredState.RUNNING:
        is_draining = deployment.desired_state == Deployment.DesiredState.DRAINING
        is_alive = any(p.state != state.STOPPED for p in processes)
        word = ("Draining" if is_draining else "Stopping") if is_alive else "Stopped"
    elif n_ready >= deployment.n_replicas:
        word = _word_of_ready(processes)
    elif n_ready:
        word = "Degraded"
    elif refusals:
        word = "Does not fit"
    elif failing:
        word = "Failed" if failed else "Crash loop" if looping else "Failing"
    elif any(process.state == state.WAITING for process in processes):
        word = state.WAITING.label
    else:
        word = "Starting"
    return LiveState(
        word=word,
        n_ready=n_ready,
        n_replicas=deployment.n_replicas,
        n_restarts=max((process.n_restarts for process in processes), default=0),
        last_error=failing[0].last_error if failing else refusals[0] if refusals else "",
    )


def _word_of_ready(processes: "Iterable[EngineProcess]") -> str:
    """Say what those do that are ready: the word of all of them, where they sleep."""
    words = {each.state_said for each in processes if each.state == EngineState.READY}
    waiting = str(EngineState.WAITING.label)
    if words == {"Asleep"}:
        return "Asleep"
    return waiting if words in ({waiting}, {waiting, "Asleep"}) else "Ready"


def deployments_with_replicas() -> list[Deployment]:
    """Return every deployment with its model version, its replicas and their engine processes, in
    two queries."""
    return list(_with_replicas())


def deployments_described() -> "QuerySet[Deployment]":
    """Return the deployments by name, as ``deployments_with_replicas`` and with their devices."""
    return _with_devices().order_by("name")


def _with_devices() -> "QuerySet[Deployment]":
    return _with_replicas().prefetch_related(
        Prefetch("replicas__devices", queryset=devices_described())
    )


def _with_replicas() -> "QuerySet[Deployment]":
    replicas = Replica.objects.select_related("engine_process").order_by("index")
    rows = Deployment.objects.select_related(
        "model_version__model", "draft_version__model", "remote"
    )
    return rows.prefetch_related(Prefetch("replicas", queryset=replicas))


def deployment_named(name: str) -> Deployment | None:
    """Return the deployment of that name with its model version and remote server."""
    return Deployment.objects.filter(name=name).select_related("model_version", "remote").first()


def deployment_name_free(wanted: str) -> str:
    """Return it, or with a number behind it, as no deployment is called yet."""
    rows = Deployment.objects.filter(name__startswith=wanted)
    taken = set(rows.values_list("name", flat=True))
    numbered = (f"{wanted}-{number}" for number in range(2, len(taken) + 3))
    return wanted if wanted not in taken else next(each for each in numbered if each not in taken)


def remote_server_named(name: str) -> RemoteServer | None:
    return RemoteServer.objects.filter(name=name).first()


def deployment_name(deployment_id: int) -> str | None:
    return Deployment.objects.filter(pk=deployment_id).values_list("name", flat=True).first()


def engine_names(deployment: Deployment) -> list[str]:
    """Return the names that engines of a deployment have or had, those of replicas that are gone
    included: by them crashes and samples are found."""
    return [f"{deployment.name}-{index}" for index in range(_MOST_REPLICAS)]


def deployment_watched(key: str) -> Deployment:
    """Return a deployment with its replicas, as from ``deployments_with_replicas``.

    Raises:
        NotFound: there is none with that key, or it is none.
    """
    rows = _with_replicas()
    try:
        return rows.get(pk=key)
    except (Deployment.DoesNotExist, ValueError, OverflowError):
        raise NotFound(f"There is no deployment {key}.") from None


def deployments_visible_to(user: "User") -> frozenset[int] | None:
    """Return the deployments that were given to somebody; None means that they see all of them."""
    if user.access.may("deployments.view_deployment"):
        return None
    given = get_objects_for_user(
        user,
        ["deployments.view_deployment", "deployments.change_deployment"],
        klass=Deployment,
        any_perm=True,
        accept_global_perms=False,
        with_superuser=False,
    )
    return frozenset(given.values_list("pk", flat=True))
