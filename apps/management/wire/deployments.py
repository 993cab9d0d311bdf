"""Deployments on the wire: what somebody may set, and what is seen of it."""

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from apps.deployments.selectors import live_state
from apps.management.wire.common import (
    MAX_INT,
    ManagedPage,
    Name,
    seconds,
    seconds_or_none,
    version_id_or_none,
)

if TYPE_CHECKING:
    from apps.deployments.models import Deployment, Replica

# Which of a deployment's fields lead to a remote server.
REMOTE_FIELDS: Final = frozenset({"remote", "remote_model", "remote_task"})

Replicas = Annotated[int, Meta(ge=1, le=16)]
Count = Annotated[int, Meta(ge=1, le=MAX_INT)]
State = Literal["running", "draining", "stopped"]
DeviceClass = Literal["auto", "cpu", "cuda"]
Backend = Literal["native", "nanovllm"]
Dtype = Literal["auto", "bfloat16", "float32"]
Quantization = Literal["none", "int8", "fp8"]
RemoteTask = Literal["generate", "embed"]
KVCacheDtype = Annotated[
    Literal["auto", "fp8"],
    Meta(
        description="What the KV cache holds. In fp8 as many tokens take half the memory; it needs "
        "a GPU. auto: as they are computed."
    ),
]
Speculation = Annotated[
    Literal["auto", "off", "ngram"],
    Meta(
        description="Guesses of the next tokens, which change no answer: none, or by what a text "
        "repeats. auto: by the draft model where there is one, else ngram on a processor and off "
        "on a GPU."
    ),
]
Attention = Annotated[
    Literal["auto", "triton", "flash-attn", "flashinfer"],
    Meta(
        description="Of a GPU: our kernels, or a library, which has to be there and to fit. auto: "
        "the fastest, as measured at each start."
    ),
]
Parts = Annotated[
    int, Meta(ge=1, le=8, description="GPUs of one machine that hold a replica together.")
]
SleepAfter = Annotated[
    int,
    Meta(
        ge=1,
        le=604_800,
        description="Without work for so many seconds, an engine gives its GPU's memory back until "
        "the next request; placement keeps that memory for it. Null: never.",
    ),
]
HostBytes = Annotated[
    int,
    Meta(
        ge=1,
        le=2**50,
        description="Of each replica, for blocks of the KV cache that the GPU evicts. Null: none.",
    ),
]
DiskBytes = Annotated[
    int,
    Meta(
        ge=1,
        le=2**50,
        description="Of each replica, encrypted, for blocks that host memory evicts. Null: none.",
    ),
]
DraftVersion = Annotated[
    Name,
    Meta(
        description="A much smaller model with the same tokenizer, whose guesses the deployment's "
        "own checks several at a time. Null: none."
    ),
]


class DeploymentChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is left out stays. ``model_version`` and ``draft_version``: NAME:NUMBER, or NAME for its
    newest version."""

    model_version: Name | UnsetType | None = UNSET
    desired_state: State | UnsetType = UNSET
    min_replicas: Replicas | UnsetType = UNSET
    max_replicas: Replicas | UnsetType = UNSET
    target_wait_ms: Annotated[int, Meta(ge=50, le=600_000)] | UnsetType = UNSET
    device_class: DeviceClass | UnsetType = UNSET
    backend: Backend | UnsetType = UNSET
    dtype: Dtype | UnsetType = UNSET
    quantization: Quantization | UnsetType = UNSET
    kv_cache_tokens: Annotated[int, Meta(ge=256, le=MAX_INT)] | UnsetType = UNSET
    max_sequences: Count | UnsetType = UNSET
    max_batched_tokens: Annotated[int, Meta(ge=16, le=MAX_INT)] | UnsetType = UNSET
    max_model_len: Annotated[int, Meta(ge=16, le=MAX_INT)] | UnsetType | None = UNSET
    kv_cache_dtype: KVCacheDtype | UnsetType = UNSET
    speculation: Speculation | UnsetType = UNSET
    attention: Attention | UnsetType = UNSET
    tensor_parallel: Parts | UnsetType = UNSET
    sleep_after_s: SleepAfter | UnsetType | None = UNSET
    host_kv_cache_bytes: HostBytes | UnsetType | None = UNSET
    disk_kv_cache_bytes: DiskBytes | UnsetType | None = UNSET
    draft_version: DraftVersion | UnsetType | None = UNSET
    remote: Name | UnsetType | None = UNSET
    remote_model: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET
    remote_task: RemoteTask | UnsetType = UNSET


class DeploymentBody(DeploymentChange, kw_only=True, forbid_unknown_fields=True):
    """What is left out is as in the admin's empty form."""

    name: Annotated[str, Meta(min_length=1, max_length=60, pattern="^[A-Za-z0-9_-]+$")]


class DesiredDeployment(msgspec.Struct, kw_only=True):
    model_version: str | None
    desired_state: str
    min_replicas: int
    max_replicas: int
    target_wait_ms: int
    device_class: str
    backend: str
    dtype: str
    quantization: str
    kv_cache_tokens: int
    max_sequences: int
    max_batched_tokens: int
    max_model_len: int | None
    kv_cache_dtype: str
    speculation: str
    attention: str
    tensor_parallel: int
    sleep_after_s: int | None
    host_kv_cache_bytes: int | None
    disk_kv_cache_bytes: int | None
    draft_version: str | None
    remote: str | None
    remote_model: str
    remote_task: str


class ReplicaObject(msgspec.Struct, kw_only=True):
    """``refusal``: why it does not run, where it fits nowhere; it names the missing bytes.
    ``devices``: all that it has, and ``device`` the first of them. ``estimated_bytes``: reserved on
    each; ``asleep_bytes``: of that, for it alone, and the rest for whoever is awake of those that
    sleep there; null: all for it. ``is_asleep``: ready, and its GPU's memory is given back until a
    request comes. ``waits_for_memory``: a request came, and others have the memory."""

    index: int
    engine: str
    state: str
    is_asleep: bool
    waits_for_memory: bool
    device: str | None
    devices: tuple[str, ...]
    estimated_bytes: int | None
    asleep_bytes: int | None
    memory_bytes: int | None
    n_running: int
    n_waiting: int
    n_restarts: int
    refusal: str
    last_error: str


class ObservedDeployment(msgspec.Struct, kw_only=True):
    state: str
    n_ready: int
    n_replicas: int
    n_restarts: int
    last_error: str
    generation: int
    scaled_because: str
    scaled_at: int | None
    replicas: tuple[ReplicaObject, ...]


class DeploymentObject(msgspec.Struct, kw_only=True):
    id: str
    object: str = "deployment"
    created_at: int
    updated_at: int
    desired: DesiredDeployment
    observed: ObservedDeployment


class DeploymentPage(ManagedPage, kw_only=True):
    data: tuple[DeploymentObject, ...]


def deployment_object(row: "Deployment") -> DeploymentObject:
    """row: as ``deployments_described`` has it; no query."""
    return DeploymentObject(
        id=row.name,
        created_at=seconds(row.created_at),
        updated_at=seconds(row.updated_at),
        desired=desired(row),
        observed=_observed(row),
    )


def desired(row: "Deployment") -> DesiredDeployment:
    return DesiredDeployment(
        model_version=version_id_or_none(row.model_version),
        desired_state=row.desired_state,
        min_replicas=row.min_replicas,
        max_replicas=row.max_replicas,
        target_wait_ms=row.target_wait_ms,
        device_class=row.device_class,
        backend=row.backend,
        dtype=row.dtype,
        quantization=row.quantization,
        kv_cache_tokens=row.kv_cache_tokens,
        max_sequences=row.max_sequences,
        max_batched_tokens=row.max_batched_tokens,
        max_model_len=row.max_model_len,
        kv_cache_dtype=row.kv_cache_dtype,
        speculation=row.speculation,
        attention=row.attention,
        tensor_parallel=row.tensor_parallel,
        sleep_after_s=row.sleep_after_s,
        host_kv_cache_bytes=row.host_kv_cache_bytes,
        disk_kv_cache_bytes=row.disk_kv_cache_bytes,
        draft_version=version_id_or_none(row.draft_version),
        remote=None if row.remote is None else row.remote.name,
        remote_model=row.remote_model,
        remote_task=row.remote_task,
    )


def _observed(row: "Deployment") -> ObservedDeployment:
    live = live_state(row)
    return ObservedDeployment(
        state=live.word.lower().replace(" ", "_"),
        n_ready=live.n_ready,
        n_replicas=live.n_replicas,
        n_restarts=live.n_restarts,
        last_error=live.last_error,
        generation=row.generation,
        scaled_because=row.scaled_because,
        scaled_at=seconds_or_none(row.scaled_at),
        replicas=tuple(_replica(each) for each in row.replicas.all()),
    )


def _replica(row: "Replica") -> ReplicaObject:
    process = row.engine_process
    devices = tuple(str(device) for device in row.devices.all())
    return ReplicaObject(
        index=row.index,
        engine=process.name,
        state=process.state,
        is_asleep=bool(process.stats.get("is_asleep")),
        waits_for_memory=process.state_said == process.State.WAITING.label,
        device=devices[0] if devices else None,
        devices=devices,
        estimated_bytes=row.estimated_bytes,
        asleep_bytes=row.deployment.asleep_bytes,
        memory_bytes=process.stats.get("rss_bytes"),
        n_running=process.stats.get("n_running", 0),
        n_waiting=process.stats.get("n_waiting", 0),
        n_restarts=process.n_restarts,
        refusal=row.refusal,
        last_error=process.last_error,
    )
