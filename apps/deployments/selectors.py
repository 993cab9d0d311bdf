"""Reads of deployments and of the replicas that the engine agent keeps."""

from django.db.models import F, Prefetch

from apps.deployments.models import Deployment, Replica
from apps.deployments.types import ReplicaEndpoint
from apps.engines.models import EngineProcess


def replica_endpoints() -> list[ReplicaEndpoint]:
    """Return the replicas that take requests now, in one query.

    A deployment that was just told to stop is left out before its engines have drained.
    """
    rows = Replica.objects.filter(
        engine_process__state=EngineProcess.State.READY,
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
