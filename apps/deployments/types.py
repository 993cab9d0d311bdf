"""What the room hands to others."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypedDict

from apps.engines.types import EngineSpec, RemoteTarget, Sharing

if TYPE_CHECKING:
    from apps.deployments.models import RemoteServer
    from apps.registry.models import ModelVersion

DEPLOYMENTS_STAMP: Final = "deployments"
REMOTE_VERSION_ID: Final = 0  # in place of a model version's, where there is no artifact here


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaEndpoint:
    """A replica that takes requests now, and the socket where its engine answers; or what is asked
    in its place.

    model_version_id: ``REMOTE_VERSION_ID`` where the model is at a remote server.
    """

    deployment_id: int
    deployment_name: str
    model_version_id: int
    replica_index: int
    engine_name: str
    epoch: int
    socket_path: str
    remote: RemoteTarget | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveState:
    """What of a deployment runs, beside what should. ``word`` is one of the keys of
    ``LIVE_STATE_TONES``; Failing is tried again, a Crash loop after a long pause, Failed not, and
    what does not fit as soon as it does. One that is Asleep wakes for a request, and what waits for
    memory gets it from the others that sleep on its device."""

    word: str
    n_ready: int
    n_replicas: int
    n_restarts: int
    last_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalable:
    """A deployment whose replicas may become more or fewer. process_ids: of those that should run
    now, as many as ``n_replicas``."""

    deployment_id: int
    name: str
    n_replicas: int
    min_replicas: int
    max_replicas: int
    target_wait_s: float
    max_sequences: int
    process_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """What the engine agent is to do. leaving: processes that run on until they are idle, then go.
    is_short: a replica fits nowhere, and may later. sharing: who may be awake only by turns."""

    specs: tuple[EngineSpec, ...]
    scalable: tuple[Scalable, ...]
    leaving: frozenset[int]
    is_short: bool
    sharing: Sharing = field(default_factory=Sharing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Whether a deployment can run beside what should run already. needs: what a replica takes, in
    words. refusal: why it cannot, with the missing bytes; empty where it can. is_known: whether any
    agent has said what there is; else nothing is refused."""

    needs: str
    refusal: str
    is_known: bool


# How bad each state is, in the names of the console's badges.
LIVE_STATE_TONES: Final[dict[str, Literal["good", "busy", "warn", "bad", "off"]]] = {
    "Ready": "good",
    "Asleep": "good",
    "Waiting for memory": "busy",
    "Degraded": "warn",
    "Starting": "busy",
    "Failing": "bad",
    "Crash loop": "bad",
    "Failed": "bad",
    "Does not fit": "bad",
    "Draining": "busy",
    "Stopping": "warn",
    "Stopped": "off",
}


class DeploymentFields(TypedDict, total=False):
    """What a person may set on a deployment, by the names of its columns."""

    name: str
    model_version: "ModelVersion | None"
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
    draft_version: "ModelVersion | None"
    remote: "RemoteServer | None"
    remote_model: str
    remote_task: str


class RemoteServerFields(TypedDict, total=False):
    """What a person may set on a remote server, by the names of its columns. The key is apart."""

    name: str
    base_url: str
    ca_file: str
    max_concurrency: int
    connect_timeout_s: int
    first_byte_timeout_s: int
    idle_timeout_s: int
