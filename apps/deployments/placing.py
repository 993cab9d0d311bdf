"""Placement with the rows: what the devices are, what each replica needs, and what comes of both.
``placement`` decides, ``needs`` says what a replica claims."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from django.template.defaultfilters import filesizeformat

from apps.deployments.estimates import Estimate
from apps.deployments.models import Deployment, Replica
from apps.deployments.needs import (
    beside,
    held_by,
    is_settled,
    kinds_of,
    n_devices_of,
    n_processes_each,
    replica_estimate,
)
from apps.deployments.placement import (
    Claim,
    Placed,
    Refused,
    Room,
    Verdict,
    place,
    room_for_sleepers,
)
from apps.deployments.selectors import deployments_all, replicas_of
from apps.deployments.types import Fit
from apps.engines.selectors import devices_seen
from apps.engines.types import Share, Sharing

if TYPE_CHECKING:
    from apps.engines.models import Device

_LEAST_KV_TOKENS: Final = 1024
_LEFT_OF_GPU: Final = 10  # a part in so many, as the engine's gpu_memory_fraction has it
_KIND_WORDS: Final = {"cuda": "GPU", "cpu": "processor"}
_BESIDE_WORDS: Final = {"cpu": "host memory", "disk": "disk"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A replica that should run: of which deployment, and its row where there is one. is_extra: it
    comes behind all that are not."""

    deployment: Deployment
    replica: Replica | None
    is_extra: bool


def refusal_of(deployment: Deployment, *, now: datetime) -> str:
    """Say why its fewest replicas cannot run beside what should run already; empty where they can,
    and where no agent has said yet what there is."""
    return _refusal(deployment, around=_surroundings(deployment, now=now))


def fit_of(deployment: Deployment, *, now: datetime) -> Fit:
    """Say what a deployment that runs here would take, before it is saved or after."""
    around = _surroundings(deployment, now=now)
    return Fit(
        needs=_needs_text(deployment, devices=around.devices),
        refusal=_refusal(deployment, around=around),
        is_known=bool(around.devices),
    )


def kv_cache_proposed(deployment: Deployment, *, now: datetime) -> int:
    """Return how many tokens its cache should hold: one request of the whole context, so far as
    deployments hold that many unless they are told to; where that does not fit, half as many, and
    so on. Where nothing fits, the first of these. Of one that makes embeddings, its own."""
    most = deployment.kv_cache_tokens
    if deployment.task == "embed":
        return most
    first = max(_LEAST_KV_TOKENS, min(deployment.context_length, most))
    around = _surroundings(deployment, now=now)
    tried, n_tokens = copy(deployment), first
    while n_tokens >= _LEAST_KV_TOKENS:
        tried.kv_cache_tokens = n_tokens
        if not _refusal(tried, around=around):
            return n_tokens
        n_tokens //= 2
    return first


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surroundings:
    """What a deployment is to run beside. own: its replicas that there are."""

    devices: list["Device"]
    own: list[Replica]
    others: list[Wanted]


def _surroundings(deployment: Deployment, *, now: datetime) -> _Surroundings:
    """Read them, in at most four queries."""
    devices = devices_seen(now)
    if deployment.model_version is None or not devices:
        return _Surroundings(devices=devices, own=[], others=[])
    others: list[Wanted] = []
    for other in deployments_all():
        is_running = other.desired_state == Deployment.DesiredState.RUNNING
        if is_running and other.pk != deployment.pk and other.model_version is not None:
            rows = list(other.replicas.all())
            others += _wanted(other, rows, n_replicas=other.n_replicas, n_first=other.min_replicas)
    own = [] if deployment.pk is None else replicas_of(deployment)
    return _Surroundings(devices=devices, own=own, others=others)


def _refusal(deployment: Deployment, *, around: _Surroundings) -> str:
    if deployment.model_version is None or not around.devices:
        return ""
    # It comes behind the others: nothing that should run already is to make room for it.
    wanted = _wanted(deployment, around.own, n_replicas=deployment.min_replicas, n_first=0)
    wanted += around.others
    verdicts = placed(wanted, devices=around.devices, is_alive=_is_alive)
    for each, verdict in zip(wanted, verdicts, strict=True):
        if each.deployment is deployment and isinstance(verdict, Refused):
            return refusal_text(verdict, deployment=deployment, devices=around.devices)
    return ""


def placed(
    wanted: Sequence[Wanted],
    *,
    devices: Collection["Device"],
    is_alive: Callable[[Replica], bool],
) -> list[Verdict]:
    """Give each its devices or a refusal, in the order of ``wanted``."""
    rooms = [_room(each) for each in devices]
    claims = [
        _claim(each, key=key, devices=devices, is_alive=is_alive) for key, each in enumerate(wanted)
    ]
    return place(rooms, claims)


def sharing_of(verdicts: Mapping[int, Verdict], *, devices: Collection["Device"]) -> Sharing:
    """Say, by the rows of their slots, who is on devices where some sleep."""
    found = {key: each for key, each in verdicts.items() if isinstance(each, Placed)}
    room_bytes = room_for_sleepers([_room(each) for each in devices], [*found.values()])
    return Sharing(
        shares={
            process_id: Share(
                device_ids=each.device_ids,
                n_bytes=max(0, each.n_bytes - (each.asleep_bytes or 0)),
                sleeps=each.asleep_bytes is not None,
            )
            for process_id, each in found.items()
            if room_bytes.keys() & {*each.device_ids}
        },
        room_bytes=room_bytes,
    )


def _room(device: "Device") -> Room:
    """Return what engines may have of it: of a GPU, nine tenths, as they themselves see to."""
    is_gpu = device.kind == device.Kind.CUDA
    n_left_bytes = device.total_bytes // _LEFT_OF_GPU if is_gpu else 0
    return Room(
        device_id=device.pk,
        node_id=device.node_id,
        kind=device.kind,
        free_bytes=device.free_bytes - n_left_bytes,
        total_bytes=device.total_bytes - n_left_bytes,
    )


def _wanted(
    deployment: Deployment, replicas: Iterable[Replica], *, n_replicas: int, n_first: int
) -> list[Wanted]:
    rows = {row.index: row for row in replicas}
    return [
        Wanted(deployment=deployment, replica=rows.get(index), is_extra=index >= n_first)
        for index in range(n_replicas)
    ]


def refusal_text(refused: Refused, *, deployment: Deployment, devices: Iterable["Device"]) -> str:
    """Say to a person what is missing and where, in full bytes too."""
    n, around = n_devices_of(deployment), beside(deployment, devices=devices)
    needs = (
        f"A replica of {deployment} needs {filesizeformat(refused.n_bytes)}{_on_each(n)}"
        f"{_beside_text(around)}"
    )
    if not refused.missing:
        kinds = " or ".join(_KIND_WORDS[kind] for kind in kinds_of(deployment))
        wanted = f"{n} {kinds}s" if n > 1 else f"a {kinds}"
        return f"{needs}, and no machine has {wanted} for it{' and all of that' if around else ''}."
    short = [
        f"{filesizeformat(n_bytes)} of it ({n_bytes:,} bytes) are missing on {device}"
        for device in devices
        if (n_bytes := refused.missing.get(device.pk))
    ]
    return f"{needs}, and {', '.join(short)}: lower kv_cache_tokens, or stop something else there."


def needs_text(deployment: Deployment, *, now: datetime) -> str:
    """Say to a person what memory one replica takes, and of what it is made."""
    return _needs_text(deployment, devices=devices_seen(now))


def _needs_text(deployment: Deployment, *, devices: Iterable["Device"]) -> str:
    if deployment.model_version is None:
        return "-"
    parts = replica_estimate(deployment, devices=devices)
    return (
        f"{filesizeformat(parts.total)}{_on_each(deployment.tensor_parallel)}: "
        f"{filesizeformat(parts.weights)} of weights, "
        f"{filesizeformat(parts.kv_cache)} of KV cache, {filesizeformat(parts.steps)} for steps, "
        f"{filesizeformat(parts.runtime)} for the process{_workspace_text(parts)}, "
        f"{filesizeformat(parts.loading)} while it loads{_draft_text(parts.draft)}"
        f"{_asleep_text(deployment)}{_beside_text(beside(deployment, devices=devices))}."
    )


def _draft_text(parts: Estimate | None) -> str:
    if parts is None:
        return ""
    return (
        f", and for its draft model {filesizeformat(parts.total)}: "
        f"{filesizeformat(parts.weights)} of weights, "
        f"{filesizeformat(parts.kv_cache)} of KV cache, {filesizeformat(parts.steps)} for steps"
        f"{_workspace_text(parts)}, {filesizeformat(parts.loading)} while it loads"
    )


def _workspace_text(parts: Estimate) -> str:
    return f", {filesizeformat(parts.workspace)} for what attends" if parts.workspace else ""


def _on_each(n_devices: int) -> str:
    return f" on each of {n_devices} devices" if n_devices > 1 else ""


def _beside_text(needs: Mapping[str, int]) -> str:
    words = [f"{filesizeformat(n)} of {_BESIDE_WORDS[kind]}" for kind, n in needs.items()]
    return f", and beside that {' and '.join(words)}" if words else ""


def _asleep_text(deployment: Deployment) -> str:
    if deployment.asleep_bytes is None:
        return ""
    kept = filesizeformat(deployment.asleep_bytes)
    where = "its GPUs" if deployment.tensor_parallel > 1 else "its GPU"
    return f"; {kept} of it while it sleeps, and the rest is shared by those that sleep on {where}"


def _claim(
    wanted: Wanted,
    *,
    key: int,
    devices: Collection["Device"],
    is_alive: Callable[[Replica], bool],
) -> Claim:
    deployment, replica = wanted.deployment, wanted.replica
    reckoned = replica_estimate(deployment, devices=devices, replica=replica)
    is_ready = replica is not None and is_settled(replica, deployment)
    return Claim(
        key=key,
        n_bytes=(reckoned.ready if is_ready else reckoned.total) * n_processes_each(deployment),
        kinds=kinds_of(deployment),
        n_devices=n_devices_of(deployment),
        beside=beside(deployment, devices=devices, replica=replica),
        device_ids=() if replica is None else tuple(each.pk for each in replica.devices.all()),
        held_bytes={} if replica is None else held_by(replica, devices=devices),
        asleep_bytes=deployment.asleep_bytes,
        group=deployment.pk,
        is_kept=(
            replica is not None
            and replica.placed_generation == deployment.generation
            and is_alive(replica)
        ),
        is_extra=wanted.is_extra,
    )


def _is_alive(replica: Replica) -> bool:
    return replica.engine_process.pid is not None
