"""Writes of deployments. Each is one transaction with its audit event and its change stamp; the
engine agent then brings the processes in line."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Unpack

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.exceptions import Conflict
from apps.core.services import change_stamp_bump, fields_set, plain
from apps.deployments.models import Deployment
from apps.deployments.placing import fit_of, kv_cache_proposed, refusal_of
from apps.deployments.reconciling import replicas_reconcile
from apps.deployments.remote_servers import (
    remote_server_create,
    remote_server_delete,
    remote_server_update,
)
from apps.deployments.types import DEPLOYMENTS_STAMP, DeploymentFields
from apps.registry.services import deployable_check

__all__ = [
    "deployment_create",
    "deployment_delete",
    "deployment_restart",
    "deployment_scale",
    "deployment_start",
    "deployment_stop",
    "deployment_update",
    "fit_of",
    "kv_cache_proposed",
    "remote_server_create",
    "remote_server_delete",
    "remote_server_update",
    "replicas_reconcile",
]

# A running engine cannot take these on: it is replaced by one of the next generation.
_ENGINE_FIELDS: Final = frozenset(
    {
        "model_version",
        "device_class",
        "backend",
        "dtype",
        "quantization",
        "kv_cache_tokens",
        "max_sequences",
        "max_batched_tokens",
        "max_model_len",
        "kv_cache_dtype",
        "speculation",
        "attention",
        "tensor_parallel",
        "sleep_after_s",
        "host_kv_cache_bytes",
        "disk_kv_cache_bytes",
        "draft_version",
        "remote",
        "remote_model",
        "remote_task",
    }
)
_SIZE_FIELDS: Final = frozenset({"min_replicas", "max_replicas"})
_VERSION_FIELDS: Final = ("model_version", "draft_version")


@transaction.atomic
def deployment_create(*, actor: Actor, **fields: Unpack[DeploymentFields]) -> Deployment:
    """Make it, with its fewest replicas.

    Raises:
        StageNotDeployable: of its version, or its draft model's, none may be made.
        ValidationError: a field is wrong, or, under ``desired_state``, it should run and does not
            fit; the message says how much is missing.
    """
    deployment = Deployment(**fields)
    deployment.n_replicas = deployment.min_replicas
    deployment.full_clean()
    _stage_check(deployment)
    _require_fit(deployment)
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
        StageNotDeployable: more of its version would run, or another draft model would, and none
            may be started.
        ValidationError: as ``deployment_create``.
    """
    current = _deployment_lock(deployment)
    changes = fields_set(current, fields)
    if not changes:
        return current
    if "name" in changes:
        raise ValidationError({"name": "The name of a deployment stays: its engines carry it."})
    if _ENGINE_FIELDS & changes.keys():
        current.generation += 1
    if _SIZE_FIELDS & changes.keys():
        n_replicas = min(max(current.n_replicas, current.min_replicas), current.max_replicas)
        _replicas_set(current, n_replicas, because="Its bounds were changed.")
    current.full_clean()
    if _starts_more(current, changes):
        _stage_check(current)
    elif "draft_version" in changes:
        _stage_check(current, fields=("draft_version",))
    if (_ENGINE_FIELDS | _SIZE_FIELDS | {"desired_state"}) & changes.keys():
        _require_fit(current)
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
    """Have it run.

    Raises:
        StageNotDeployable: of its version none may be started.
        ValidationError: it does not fit; ``desired_state`` is the field.
    """
    return _desired_state_set(
        deployment, state=Deployment.DesiredState.RUNNING, action="deployment.started", actor=actor
    )


@transaction.atomic
def deployment_drain(*, deployment: Deployment, actor: Actor) -> Deployment:
    """Have its engines finish what they have, however long that takes, and then stop. What does not
    run stays as it is."""
    current = _deployment_lock(deployment)
    if current.desired_state != Deployment.DesiredState.RUNNING:
        return current
    return _desired_state_set(
        current, state=Deployment.DesiredState.DRAINING, action="deployment.draining", actor=actor
    )


def deployment_stop(*, deployment: Deployment, actor: Actor) -> Deployment:
    """Have its engines stop: what they do not finish within their grace time is cut off."""
    return _desired_state_set(
        deployment, state=Deployment.DesiredState.STOPPED, action="deployment.stopped", actor=actor
    )


@transaction.atomic
def deployment_restart(*, deployment: Deployment, actor: Actor) -> Deployment:
    """Replace its engines by new ones, also those that failed for good.

    Raises:
        StageNotDeployable: of its version none may be started.
        ValidationError: as ``deployment_start``.
    """
    current = _deployment_lock(deployment)
    _stage_check(current)
    current.generation += 1
    current.desired_state = Deployment.DesiredState.RUNNING
    _require_fit(current)
    current.save(update_fields=["generation", "desired_state", "updated_at"])
    event_record(action="deployment.restarted", actor=actor, obj=current)
    change_stamp_bump(DEPLOYMENTS_STAMP)
    return current


@transaction.atomic
def deployment_scale(
    *, deployment_id: int, n_replicas: int, because: str, actor: Actor
) -> Deployment | None:
    """Have so many replicas run, within its bounds as they are now; None where it is gone."""
    row = Deployment.objects.filter(pk=deployment_id).first()
    if row is None:
        return None
    current = _deployment_lock(row)
    before = current.n_replicas
    n_replicas = min(max(n_replicas, current.min_replicas), current.max_replicas)
    if n_replicas != before:
        _replicas_set(current, n_replicas, because=because)
        current.save(update_fields=["n_replicas", "scaled_because", "scaled_at", "updated_at"])
        event_record(
            action="deployment.scaled",
            actor=actor,
            obj=current,
            changes={"n_replicas": [before, n_replicas], "because": current.scaled_because},
        )
        change_stamp_bump(DEPLOYMENTS_STAMP)
    return current


@transaction.atomic
def _desired_state_set(
    deployment: Deployment, *, state: Deployment.DesiredState, action: str, actor: Actor
) -> Deployment:
    current = _deployment_lock(deployment)
    if current.desired_state != state:
        if state == Deployment.DesiredState.RUNNING:
            _stage_check(current)
        current.desired_state = state
        _require_fit(current)
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
    before, after = changes.get("min_replicas", (0, 0))
    return "desired_state" in changes or after > before


def _stage_check(deployment: Deployment, *, fields: Iterable[str] = _VERSION_FIELDS) -> None:
    versions = [(getattr(deployment, name), name) for name in fields]
    found = [(version, name) for version, name in versions if version is not None]
    for version, name in sorted(found, key=lambda each: each[0].pk):  # they are locked
        deployable_check(version, param=name)


def _replicas_set(deployment: Deployment, n_replicas: int, *, because: str) -> None:
    if deployment.n_replicas != n_replicas:
        deployment.n_replicas = n_replicas
        deployment.scaled_because = because[:200]
        deployment.scaled_at = timezone.now()


def _require_fit(deployment: Deployment) -> None:
    if deployment.desired_state != Deployment.DesiredState.RUNNING:
        return
    if refusal := refusal_of(deployment, now=timezone.now()):
        error = ValidationError(refusal, code="does_not_fit")
        raise ValidationError({"desired_state": error})


def _deployment_lock(deployment: Deployment) -> Deployment:
    return (
        Deployment.objects.select_for_update(of=("self",))
        .select_related("model_version", "draft_version", "remote")
        .get(pk=deployment.pk)
    )
