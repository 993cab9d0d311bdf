"""What the engine agent does with the rows: replicas are made, given devices, and go."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from django.db import transaction
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import SYSTEM
from apps.deployments.models import Deployment, Replica
from apps.deployments.needs import n_processes_each, replica_estimate
from apps.deployments.placement import Placed, Refused
from apps.deployments.placing import Wanted, placed, refusal_text, sharing_of
from apps.deployments.selectors import deployments_all, remote_target
from apps.deployments.types import Reconciled, Scalable
from apps.engines.selectors import EngineState, devices_of, engine_processes
from apps.engines.services import (
    engine_process_create,
    engine_processes_remove,
    kv_cache_dir,
    node_cache,
)
from apps.engines.types import EngineSpec, Sharing
from apps.registry.selectors import artifact_of, version_dir
from apps.registry.types import Artifact

if TYPE_CHECKING:
    from apps.engines.models import Device
    from apps.registry.models import ModelVersion

# Until then, a gateway may still send something to a replica that should go.
_STILL_ROUTED_S: Final = 2.0


@transaction.atomic
def replicas_reconcile(
    *,
    occupied: Collection[int] = (),
    node_id: int | None = None,
    idle_at: Mapping[int, datetime] | None = None,
) -> Reconciled:
    """Bring the replicas' rows in line with the deployments; return what should run.

    Rows that nothing asks for go, but for the slots in ``occupied``, whose process still lives.
    One that became too many, or drains, runs on until it said, at the time in ``idle_at``, that it
    has nothing to do; a deployment that has drained is stopped. Each gets devices of the node
    ``node_id``; one that fits on none does not run, and its row says why. Without a node nothing is
    placed. Only the engine agent calls this.
    """
    deployments = deployments_all()
    _drained_stop(deployments, occupied=occupied)
    running = [d for d in deployments if d.desired_state != Deployment.DesiredState.STOPPED]
    leaving = {
        replica.engine_process_id
        for deployment in running
        for replica in deployment.replicas.all()
        if replica.engine_process_id in occupied
        and _is_leaving(replica, deployment, idle_at=idle_at or {})
    }
    names = {process.pk: process.name for process in engine_processes()}
    kept = leaving | {
        replica.engine_process_id
        for deployment in deployments
        for replica in deployment.replicas.all()
        if replica.index < deployment.n_replicas
    }
    if surplus := names.keys() - kept - set(occupied):
        engine_processes_remove(surplus)
    taken = {name for process_id, name in names.items() if process_id not in surplus}
    complete = {
        deployment: _replicas_complete(deployment, taken_names=taken, leaving=leaving)
        for deployment in running
    }
    replicas = [replica for found in complete.values() for replica in found]
    sharing = Sharing()
    if node_id is not None:
        sharing = _place(replicas, devices=devices_of(node_id), occupied=occupied)
    fitting = [replica for replica in replicas if not replica.refusal]
    return Reconciled(
        specs=tuple(_engine_spec(replica) for replica in fitting),
        scalable=tuple(
            _scalable(deployment, found)
            for deployment, found in complete.items()
            if deployment.max_replicas > deployment.min_replicas and _n_wanted(deployment)
        ),
        leaving=frozenset(leaving),
        is_short=len(fitting) < len(replicas),
        sharing=sharing,
    )


def _drained_stop(deployments: Collection[Deployment], *, occupied: Collection[int]) -> None:
    """Make those stopped that drain and have no engine any more, unless somebody starts them."""
    draining, stopped = Deployment.DesiredState.DRAINING, Deployment.DesiredState.STOPPED
    for each in deployments:
        rows = Deployment.objects.filter(pk=each.pk, desired_state=draining)
        if _has_drained(each, occupied) and rows.update(
            desired_state=stopped, updated_at=timezone.now()
        ):
            each.desired_state = stopped
            event_record(action="deployment.stopped", actor=SYSTEM, obj=each)


def _has_drained(deployment: Deployment, occupied: Collection[int]) -> bool:
    return deployment.desired_state == Deployment.DesiredState.DRAINING and not any(
        replica.engine_process_id in occupied for replica in deployment.replicas.all()
    )


def _n_wanted(deployment: Deployment) -> int:
    """Return how many of its replicas are to go on."""
    is_draining = deployment.desired_state == Deployment.DesiredState.DRAINING
    return 0 if is_draining else deployment.n_replicas


def _is_leaving(
    replica: Replica, deployment: Deployment, *, idle_at: Mapping[int, datetime]
) -> bool:
    """Whether a replica that became too many, or drains, may still have something to do."""
    is_draining = deployment.desired_state == Deployment.DesiredState.DRAINING
    since = deployment.updated_at if is_draining else deployment.scaled_at
    if replica.index < _n_wanted(deployment) or since is None:
        return False
    if replica.engine_process.state != EngineState.READY:
        return False
    idle = idle_at.get(replica.engine_process_id)
    return idle is None or idle < since + timedelta(seconds=_STILL_ROUTED_S)


def _replicas_complete(
    deployment: Deployment, *, taken_names: Collection[str], leaving: Collection[int]
) -> list[Replica]:
    """Return the replicas that should run, made where they are missing. One whose slot still has
    the process of a deleted namesake is left for the next time."""
    replicas = {replica.index: replica for replica in deployment.replicas.all()}
    for index in range(_n_wanted(deployment)):
        name = f"{deployment.name}-{index}"
        if index not in replicas and name not in taken_names:
            process = engine_process_create(name=name)
            replicas[index] = Replica.objects.create(
                deployment=deployment, index=index, engine_process=process
            )
    return [
        replica
        for index, replica in sorted(replicas.items())
        if index < _n_wanted(deployment) or replica.engine_process_id in leaving
    ]


def _place(
    replicas: Collection[Replica], *, devices: Collection["Device"], occupied: Collection[int]
) -> Sharing:
    """Write to each replica that runs here where it goes, or why it does not."""
    here = [each for each in replicas if each.deployment.model_version_id is not None]
    by_id = {device.pk: device for device in devices}
    verdicts = placed(
        [
            Wanted(
                deployment=each.deployment,
                replica=each,
                is_extra=each.index >= each.deployment.min_replicas,
            )
            for each in here
        ],
        devices=devices,
        is_alive=lambda replica: replica.engine_process_id in occupied,
    )
    for replica, verdict in zip(here, verdicts, strict=True):
        if isinstance(verdict, Refused):
            text = refusal_text(verdict, deployment=replica.deployment, devices=devices)
            _refuse(replica, text[:300], n_bytes=verdict.n_bytes)
        else:
            found = [by_id[device_id] for device_id in verdict.device_ids]
            _settle(replica, verdict, devices=found, occupied=occupied)
    by_process = {
        replica.engine_process_id: verdict for replica, verdict in zip(here, verdicts, strict=True)
    }
    return sharing_of(by_process, devices=devices)


def _settle(
    replica: Replica, verdict: Placed, *, devices: Sequence["Device"], occupied: Collection[int]
) -> None:
    deployment = replica.deployment
    if (
        not replica.refusal
        and {each.pk for each in replica.devices.all()} == set(verdict.device_ids)
        and replica.placed_generation == deployment.generation
        and replica.engine_process_id in occupied
    ):
        return  # it goes on as it is: another share of the cores would start it anew
    replica.placed_generation = deployment.generation
    replica.n_threads = _threads(deployment, device=devices[0])
    replica.estimated_bytes = verdict.n_bytes
    replica.lasting_bytes = replica_estimate(deployment, devices=devices).lasting
    replica.refusal = ""
    replica.save()
    replica.devices.set(devices)


def _refuse(replica: Replica, refusal: str, *, n_bytes: int) -> None:
    if replica.refusal != refusal or replica.devices.all():
        replica.placed_generation = None
        replica.estimated_bytes, replica.refusal = n_bytes, refusal
        replica.save()
        replica.devices.clear()


def _threads(deployment: Deployment, *, device: "Device") -> int | None:
    """Return a process's share of the cores, which all of its deployment may be busy with at once;
    None where it need not share. Other deployments often rest, and are not reckoned with."""
    n_processes = deployment.max_replicas * n_processes_each(deployment)
    if device.kind != "cpu" or n_processes == 1:
        return None
    return max(1, device.node.n_cores // n_processes)


def _scalable(deployment: Deployment, replicas: Collection[Replica]) -> Scalable:
    return Scalable(
        deployment_id=deployment.pk,
        name=deployment.name,
        n_replicas=deployment.n_replicas,
        min_replicas=deployment.min_replicas,
        max_replicas=deployment.max_replicas,
        target_wait_s=deployment.target_wait_ms / 1000,
        max_sequences=deployment.max_sequences,
        process_ids=tuple(
            replica.engine_process_id
            for replica in replicas
            if replica.index < deployment.n_replicas
        ),
    )


def _engine_spec(replica: Replica) -> EngineSpec:
    deployment = replica.deployment
    if deployment.model_version is None:
        return EngineSpec(
            process_id=replica.engine_process_id,
            name=replica.engine_process.name,
            revision=deployment.generation,
            remote=remote_target(deployment),
        )
    directory, artifact = _files_of(deployment.model_version)
    draft = deployment.draft_version
    draft_directory, draft_artifact = (None, None) if draft is None else _files_of(draft)
    n_processes = deployment.tensor_parallel
    is_quantized = deployment.quantization != Deployment.Quantization.NONE
    is_native = deployment.backend == Deployment.Backend.NATIVE
    arguments = {
        "--model": directory,
        "--draft-model": draft_directory,
        "--dtype": deployment.dtype,
        "--quantization": deployment.quantization if is_quantized else None,
        "--backend": None if is_native else deployment.backend,
        "--kv-cache-tokens": deployment.kv_cache_tokens,
        "--max-sequences": deployment.max_sequences,
        "--max-batched-tokens": deployment.max_batched_tokens,
        "--max-model-len": deployment.max_model_len,
        "--threads": replica.n_threads,
        **_chosen_words(deployment),
        "--tensor-parallel": n_processes if n_processes > 1 else None,
        # The processor's own kernels know nothing of it.
        "--kernels": "torch" if n_processes_each(deployment) > 1 else None,
        "--sleep-after-s": deployment.sleep_after_s,
        "--host-kv-cache-bytes": deployment.host_kv_cache_bytes,
        "--disk-kv-cache-bytes": deployment.disk_kv_cache_bytes,
        "--kv-cache-dir": kv_cache_dir() if deployment.disk_kv_cache_bytes else None,
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
        environment=_environment(replica.devices.all()),
        artifacts=tuple(each for each in (artifact, draft_artifact) if each is not None),
    )


def _chosen_words(deployment: Deployment) -> dict[str, str | None]:
    """Return what is not left to the engine."""
    words = {
        "--kv-cache-dtype": deployment.kv_cache_dtype,
        "--speculation": deployment.speculation,
        "--attention": deployment.attention,
    }
    return {option: None if word == "auto" else word for option, word in words.items()}


def _files_of(version: "ModelVersion") -> tuple[Path, Artifact | None]:
    """Return where an engine reads them, and what is fetched there first, if it must be."""
    if (directory := version_dir(version)) is not None:
        return directory, None
    artifact = artifact_of(version)
    return node_cache().directory_of(artifact), artifact


def _environment(devices: Iterable["Device"]) -> tuple[tuple[str, str], ...]:
    """Show an engine the GPUs that it was given, or none."""
    found = sorted(devices, key=lambda device: device.index)
    if not found:
        return ()
    gpus = [device.uid for device in found if device.kind == "cuda"]
    return (("CUDA_VISIBLE_DEVICES", ",".join(gpus)),)
