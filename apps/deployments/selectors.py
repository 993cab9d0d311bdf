"""Reads of deployments and of the replicas that the engine agent keeps."""

from django.db.models import F, Prefetch

from apps.deployments.models import Deployment, Replica
from apps.deployments.types import LiveState, ReplicaEndpoint
from apps.engines.selectors import EngineState


def replica_endpoints() -> list[ReplicaEndpoint]:
    """Return the replicas that take requests now, in one query.

    A deployment that was just told to stop is left out before its engines have drained.
    """
    rows = Replica.objects.filter(
        engine_process__state=EngineState.READY,
        deployment__desired_state=Deployment.DesiredState.RUNNING,
        index__lt=F("deployment__n_replicas"),
    ).values_list(
        "deployment_id",
        "deployment__name",
        "deployment__model_version_id",
        "index",
        "engine_process__name",
        "engine_process__epoch",
        "engine_process__socket_path",
    )
    return [
        ReplicaEndpoint(
            deployment_id=deployment_id,
            deployment_name=deployment_name,
            model_version_id=model_version_id,
            replica_index=index,
            engine_name=engine_name,
            epoch=epoch,
            socket_path=socket_path,
        )
        for (
            deployment_id,
            deployment_name,
            model_version_id,
            index,
            engine_name,
            epoch,
            socket_path,
        ) in rows.order_by("deployment_id", "index")
    ]


def deployments_all() -> list[Deployment]:
    """Return every deployment with its model version and its replicas, in two queries."""
    replicas = Replica.objects.select_related("engine_process")
    return list(
        Deployment.objects.select_related("model_version__model").prefetch_related(
            Prefetch("replicas", queryset=replicas)
        )
    )


def deployments_running() -> list[Deployment]:
    """Return what should run, each with its model version, in one query."""
    return list(
        Deployment.objects.filter(desired_state=Deployment.DesiredState.RUNNING).select_related(
            "model_version__model"
        )
    )


def live_state(deployment: Deployment) -> LiveState:
    """Judge a deployment that came with its replicas, as from ``deployments_all``: no query."""
    state = EngineState
    processes = [replica.engine_process for replica in deployment.replicas.all()]
    n_ready = sum(process.state == state.READY for process in processes)
    failed = [process for process in processes if process.state == state.FAILED]
    failing = failed + [
        process for process in processes if process.state in (state.BACKING_OFF, state.UNRESPONSIVE)
    ]
    if deployment.desired_state == Deployment.DesiredState.STOPPED:
        word = "Stopping" if any(p.state != state.STOPPED for p in processes) else "Stopped"
    elif n_ready >= deployment.n_replicas:
        word = "Ready"
    elif n_ready:
        word = "Degraded"
    elif failing:
        word = "Failed" if failed else "Failing"
    else:
        word = "Starting"
    return LiveState(
        word=word,
        n_ready=n_ready,
        n_replicas=deployment.n_replicas,
        n_restarts=max((process.n_restarts for process in processes), default=0),
        last_error=failing[0].last_error if failing else "",
    )


def deployments_with_replicas() -> list[Deployment]:
    """Return every deployment with its model version, its replicas and their engine processes, in
    two queries."""
    replicas = Replica.objects.select_related("engine_process").order_by("index")
    return list(
        Deployment.objects.select_related("model_version__model").prefetch_related(
            Prefetch("replicas", queryset=replicas)
        )
    )


def deployment_name(deployment_id: int) -> str | None:
    return Deployment.objects.filter(pk=deployment_id).values_list("name", flat=True).first()
