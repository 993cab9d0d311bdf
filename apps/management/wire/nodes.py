"""Machines and their devices on the wire."""

from datetime import datetime, timedelta
from typing import Any

import msgspec

from apps.engines.selectors import NODE_SILENT_AFTER_S, reserved_of
from apps.management.wire.common import ManagedPage, seconds


class DeviceObject(msgspec.Struct, kw_only=True):
    """What computes there, ``cpu`` or ``cuda``, or the ``disk`` that engines may use.
    ``free_bytes``: what nobody held when its agent last looked. ``reserved_bytes``: kept for single
    replicas; ``shared_bytes``: beside that, for whoever is awake of the ``n_sharing`` that sleep
    there. ``replicas``: as DEPLOYMENT/INDEX."""

    id: str
    object: str = "device"
    kind: str
    index: int
    name: str
    total_bytes: int
    free_bytes: int
    reserved_bytes: int
    shared_bytes: int
    n_sharing: int
    auto_dtype: str
    replicas: tuple[str, ...]


class NodeObject(msgspec.Struct, kw_only=True):
    """``is_seen``: its agent was heard of lately; what was not is given no replica."""

    id: str
    object: str = "node"
    n_cores: int
    seen_at: int
    is_seen: bool
    devices: tuple[DeviceObject, ...]


class NodePage(ManagedPage, kw_only=True):
    data: tuple[NodeObject, ...]


def node_object(row: Any, *, now: datetime) -> NodeObject:
    """row: as ``nodes_described`` has it; no query."""
    return NodeObject(
        id=row.name,
        n_cores=row.n_cores,
        seen_at=seconds(row.seen_at),
        is_seen=now - row.seen_at <= timedelta(seconds=NODE_SILENT_AFTER_S),
        devices=tuple(_device(device, node_name=row.name) for device in row.devices.all()),
    )


def _device(row: Any, *, node_name: str) -> DeviceObject:
    reserved = reserved_of(row)
    return DeviceObject(
        id=f"{node_name}/{row.uid}",
        kind=row.kind,
        index=row.index,
        name=row.name,
        total_bytes=row.total_bytes,
        free_bytes=row.free_bytes,
        reserved_bytes=reserved.own_bytes,
        shared_bytes=reserved.shared_bytes,
        n_sharing=reserved.n_sharing,
        auto_dtype=row.auto_dtype,
        replicas=tuple(sorted(str(replica) for replica in row.replicas.all())),
    )
