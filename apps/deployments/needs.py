"""What a replica claims, by its deployment's row: of which devices, how much of each, and what its
processes hold already. ``estimates`` reckons."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from apps.deployments.estimates import EngineSizes, Estimate, estimate
from apps.deployments.models import Deployment, Replica
from apps.engines.selectors import EngineState
from apps.engines.types import EMBEDDING_DEVICES, ENGINE_DEVICES
from apps.registry.selectors import model_shape

if TYPE_CHECKING:
    from apps.engines.models import Device
    from apps.registry.models import ModelVersion


def replica_estimate(
    deployment: Deployment, *, devices: Iterable["Device"], replica: Replica | None = None
) -> Estimate:
    """Reckon one replica of a deployment that runs here: each part of it, where it has several."""
    version, draft = deployment.model_version, deployment.draft_version
    assert version is not None
    sizes = EngineSizes(
        dtype=_dtype(deployment, devices=devices, replica=replica),
        quantization=deployment.quantization,
        kv_cache_dtype=deployment.kv_cache_dtype,
        attention=deployment.attention,
        kv_cache_tokens=deployment.kv_cache_tokens,
        max_sequences=deployment.max_sequences,
        max_batched_tokens=deployment.max_batched_tokens,
        n_parts=deployment.tensor_parallel,
        is_on_gpu=deployment.device_class == Deployment.DeviceClass.CUDA,
    )
    own = _estimate(version, sizes=sizes)
    if draft is None:
        return own
    # Of several parts the first guesses for all; where it is, the others' devices have room too.
    return own.with_draft(_estimate(draft, sizes=replace(sizes, quantization="none", n_parts=1)))


def kinds_of(deployment: Deployment) -> tuple[str, ...]:
    """Return the kinds of devices that it may be on, the best first."""
    if deployment.device_class == Deployment.DeviceClass.AUTO:
        return EMBEDDING_DEVICES if deployment.task == "embed" else ENGINE_DEVICES
    return (deployment.device_class,)


def n_devices_of(deployment: Deployment) -> int:
    """Return how many devices a replica has. All its processes share the processor."""
    return 1 if _is_on_processor(deployment) else deployment.tensor_parallel


def n_processes_each(deployment: Deployment) -> int:
    """Return how many processes of a replica are on each of its devices."""
    return deployment.tensor_parallel if _is_on_processor(deployment) else 1


def beside(
    deployment: Deployment, *, devices: Iterable["Device"], replica: Replica | None = None
) -> dict[str, int]:
    """Return what a replica needs beside its devices, by kind, all its parts together: host memory
    for the cache and for the weights of an engine that may sleep, and disk."""
    host = deployment.host_kv_cache_bytes or 0
    if deployment.sleep_after_s is not None:
        reckoned = replica_estimate(deployment, devices=devices, replica=replica)
        host += reckoned.all_weights(n_parts=deployment.tensor_parallel)
    needs = {"cpu": host, "disk": deployment.disk_kv_cache_bytes or 0}
    return {kind: n_bytes for kind, n_bytes in needs.items() if n_bytes}


def held_by(replica: Replica, *, devices: Iterable["Device"]) -> dict[int, int]:
    """Return what its processes hold of each device and disk at least. The rest of what they were
    reserved is kept for them."""
    placed = {device.pk for device in replica.devices.all()}
    nodes = {device.node_id for device in replica.devices.all()}
    found: dict[int, int] = {}
    for device in devices:
        if device.pk in placed:
            found[device.pk] = _held_on(replica, device)
        elif device.node_id in nodes:
            found[device.pk] = _held_beside(replica, device)
    return {device_id: n_bytes for device_id, n_bytes in found.items() if n_bytes}


def is_settled(replica: Replica, deployment: Deployment) -> bool:
    """Whether its engine is ready, and is as the deployment has it now."""
    return (
        replica.placed_generation == deployment.generation
        and replica.engine_process.state == EngineState.READY
    )


def _held_on(replica: Replica, device: "Device") -> int:
    process = replica.engine_process
    if device.kind != device.Kind.CUDA:
        return int(process.stats.get("rss_bytes", 0))
    # Nobody asks a GPU whose its memory is. What counts is what an engine has for certain, once its
    # agent has looked at the GPU since; one that sleeps has given it back.
    is_there = (
        process.state == EngineState.READY
        and process.ready_at is not None
        and process.ready_at <= device.node.seen_at
        and not process.stats.get("is_asleep")
    )
    return replica.lasting_bytes or 0 if is_there else 0


def _held_beside(replica: Replica, device: "Device") -> int:
    stats = replica.engine_process.stats
    tiers = stats.get("tiers") or {}
    if device.kind == device.Kind.CPU:
        return int(tiers.get("host_bytes_total", 0)) + int(stats.get("saved_bytes", 0))
    return int(tiers.get("disk_bytes", 0)) if device.kind == device.Kind.DISK else 0


def _estimate(version: "ModelVersion", *, sizes: EngineSizes) -> Estimate:
    return estimate(
        n_parameters=version.n_parameters,
        shape=model_shape(version),
        task=version.task,
        sizes=sizes,
    )


def _is_on_processor(deployment: Deployment) -> bool:
    return deployment.device_class == Deployment.DeviceClass.CPU


def _dtype(deployment: Deployment, *, devices: Iterable["Device"], replica: Replica | None) -> str:
    """Return what its engine computes in: as set, as it said itself, or as it will choose on the
    device where that is widest."""
    if deployment.dtype != Deployment.Dtype.AUTO:
        return deployment.dtype
    if deployment.task == "embed":
        return "float32"  # its vectors are compared with others of long ago
    if replica is not None and is_settled(replica, deployment):
        return str(replica.engine_process.info["dtype"])
    if n_processes_each(deployment) > 1:
        return "float32"  # whatever the compiled kernels would choose: it does without them
    choices = {device.auto_dtype for device in devices if device.kind in kinds_of(deployment)}
    return "bfloat16" if choices == {"bfloat16"} else "float32"
