"""Writes of deployments. Each is one transaction with its audit event and its change stamp; the
engine agent then brings the processes in line."""

from collections.abc import Collection, Mapping
from typing import Any, Final, Unpack

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models, transaction

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.exceptions import Conflict
from apps.core.services import change_stamp_bump, fields_set, plain
from apps.deployments.models import Deployment, Replica
from apps.deployments.remote_servers import (
    remote_server_create,
    remote_server_delete,
    remote_server_update,
)
from apps.deployments.selectors import deployments_all, remote_target
from apps.deployments.types import DEPLOYMENTS_STAMP, DeploymentFields
from apps.engines.selectors import engine_processes
from apps.engines.services import engine_process_create, engine_processes_remove
from apps.engines.types import EngineSpec
from apps.registry.services import deployable_check

__all__ = [
    "deployment_create",
    "deployment_delete",
    "deployment_restart",
    "deployment_start",
    "deployment_stop",
    "deployment_update",
    "remote_server_create",
    "remote_server_delete",
    "remote_server_update",
    "replicas_reconcile",
]

# A running engine cannot take these on: it is replaced by one of the next generation.
_ENGINE_FIELDS: Final = frozenset(
    {
        "model_version",
        "dtype",
        "kv_cache_tokens",
        "max_sequences",
        "max_batched_tokens",
        "max_model_len",
        "remote",
        "remote_model",
        "remote_task",
    }
)


@transaction.atomic
def deployment_create(*, actor: Actor, **fields: Unpack[DeploymentFields]) -> Deployment:
    """Make a deployment.

    Raises:
        StageNotDeployable: of its version none may be made.
    """
    deployment = Deployment(**fields)
    deployment.full_clean()
    _stage_check(deployment)
    deployment.save()
    facts = {name: plain(value) for name, value in fields.items()}
    event_record(action="deployment.created", actor=actor, obj=deployment, changes=facts)
    change_stamp_bump(DEPLOYMENTS_STAMP)
    return deployment


@transaction.atomic
def deployment_update(
    *, deployment: Deployment, actor: Actor, **fields: Unpack[DeploymentFields]
) -> Deployment:
    """Set the given fields; a change that engines must be started anew for replaces them.

    Raises:
        StageNotDeployable: more of its version would run, and none may be started.
    """
    current = _deployment_lock(deployment)
    changes = fields_set(current, fields)
    if not changes:
        return current
    if "name" in changes:
        raise ValidationError({"name": "The name of a deployment stays: its engines carry it."})
    if _ENGINE_FIELDS & changes.keys():
        current.generation += 1
    current.full_clean()
    if _starts_more(current, changes):
        _stage_check(current)
    current.save()
    event_record(action="deployment.updated", actor=actor, obj=current, changes=changes)
    change_stamp_bump(DEPLOYMENTS_STAMP)
    return current


@transaction.atomic
def deployment_delete(*, deployment: Deployment, actor: Actor) -> None:
    """Remove the deployment; the agent then stops its engines and removes their rows.

    Raises:
        Conflict: something still leads to it, such as a route.
    """
    current = _deployment_lock(deployment)
    event_record(action="deployment.deleted", actor=actor, obj=current)
    try:
        current.delete()
    except models.ProtectedError as error:
        users = ", ".join(sorted(str(obj) for obj in error.protected_objects)[:5])
        raise Conflict(f"Deployment {current} is still used by: {users}.") from error
    change_stamp_bump(DEPLOYMENTS_STAMP)


def deployment_start(*, deployment: Deployment, actor: Actor) -> Deployment:
    """Raises StageNotDeployable."""
    return _desired_state_set(
        deployment, state=Deployment.DesiredState.RUNNING, action="deployment.started", actor=actor
    )


def deployment_stop(*, deployment: Deployment, actor: Actor) -> Deployment:
    """Let its engines drain, then stop."""
    return _desired_state_set(
        deployment, state=Deployment.DesiredState.STOPPED, action="deployment.stopped", actor=actor
    )


@transaction.atomic
def deployment_restart(*, deployment: Deployment, actor: Actor) -> Deployment:
    """Replace its engines by new ones, also those that failed for good.

    Raises:
        StageNotDeployable: of its version none may be started.
    """
    current = _deployment_lock(deployment)
    _stage_check(current)
    current.generation += 1
    current.desired_state = Deployment.DesiredState.RUNNING
    current.save(update_fields=["generation", "desired_state", "updated_at"])
    event_record(action="deployment.restarted", actor=actor, obj=current)
    change_stamp_bump(DEPLOYMENTS_STAMP)
    return current


@transaction.atomic
def replicas_reconcile(*, occupied: Collection[int] = ()) -> list[EngineSpec]:
    """Bring the replicas' rows in line with the deployments; return what should run.

    Rows that nothing asks for go, but for the slots in ``occupied``, whose process still lives.
    Only the engine agent calls this.
    """
    deployments = deployments_all()
    names = {process.pk: process.name for process in engine_processes()}
    kept = {
        replica.engine_process_id
        for deployment in deployments
        for replica in deployment.replicas.all()
        if replica.index < deployment.n_replicas
    }
    if surplus := names.keys() - kept - set(occupied):
        engine_processes_remove(surplus)
    taken = {name for process_id, name in names.items() if process_id not in surplus}
    return [
        _engine_spec(replica)
        for deployment in deployments
        if deployment.desired_state == Deployment.DesiredState.RUNNING
        for replica in _replicas_complete(deployment, taken_names=taken)
    ]


def _replicas_complete(deployment: Deployment, *, taken_names: Collection[str]) -> list[Replica]:
    """Return the replicas that should run, made where they are missing. One whose slot still has
    the process of a deleted namesake is left for the next time."""
    replicas = {replica.index: replica for replica in deployment.replicas.all()}
    for index in range(deployment.n_replicas):
        name = f"{deployment.name}-{index}"
        if index not in replicas and name not in taken_names:
            process = engine_process_create(name=name)
            replicas[index] = Replica.objects.create(
                deployment=deployment, index=index, engine_process=process
            )
    return [replica for index, replica in replicas.items() if index < deployment.n_replicas]


def _engine_spec(replica: Replica) -> EngineSpec:
    deployment = replica.deployment
    if deployment.model_version is None:
        return EngineSpec(
            process_id=replica.engine_process_id,
            name=replica.engine_process.name,
            revision=deployment.generation,
            remote=remote_target(deployment),
        )
    arguments = {
        "--model": settings.MODELS_DIR / deployment.model_version.path,
        "--dtype": deployment.dtype,
        "--kv-cache-tokens": deployment.kv_cache_tokens,
        "--max-sequences": deployment.max_sequences,
        "--max-batched-tokens": deployment.max_batched_tokens,
        "--max-model-len": deployment.max_model_len,
    }
    return EngineSpec(
        process_id=replica.engine_process_id,
        name=replica.engine_process.name,
        revision=deployment.generation,
        arguments=tuple(
            str(part)
            for name, value in arguments.items()
            if value is not None
            for part in (name, value)
        ),
    )


@transaction.atomic
def _desired_state_set(
    deployment: Deployment, *, state: Deployment.DesiredState, action: str, actor: Actor
) -> Deployment:
    current = _deployment_lock(deployment)
    if current.desired_state != state:
        if state == Deployment.DesiredState.RUNNING:
            _stage_check(current)
        current.desired_state = state
        current.save(update_fields=["desired_state", "updated_at"])
        event_record(action=action, actor=actor, obj=current)
        change_stamp_bump(DEPLOYMENTS_STAMP)
    return current


def _starts_more(deployment: Deployment, changes: Mapping[str, list[Any]]) -> bool:
    """Return whether a change makes something run that did not: another version, or more of it."""
    if "model_version" in changes:
        return True
    if deployment.desired_state != Deployment.DesiredState.RUNNING:
        return False
    before, after = changes.get("n_replicas", (0, 0))
    return "desired_state" in changes or after > before


def _stage_check(deployment: Deployment) -> None:
    if deployment.model_version is not None:
        deployable_check(deployment.model_version)


def _deployment_lock(deployment: Deployment) -> Deployment:
    return (
        Deployment.objects.select_for_update(of=("self",))
        .select_related("model_version", "remote")
        .get(pk=deployment.pk)
    )
