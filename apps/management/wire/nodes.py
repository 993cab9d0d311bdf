"""Machines and their devices on the wire."""

from datetime import datetime, timedelta
from typing import Any

import msgspec

from apps.engines.selectors import NODE_SILENT_AFTER_S
from apps.management.wire.common import ManagedPage, seconds


class DeviceObject(msgspec.Struct, kw_only=True):
    """What computes there, ``cpu`` or ``cuda``, or the ``disk`` that engines may use.
    ``free_bytes``: what nobody held when its agent last looked. ``replicas``: as
    DEPLOYMENT/INDEX."""

    id: str
    object: str = "device"
    kind: str
    index: int
    name: str
    total_bytes: int
    free_bytes: int
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
        devices=tuple(
            DeviceObject(
                id=f"{row.name}/{device.uid}",
                kind=device.kind,
                index=device.index,
                name=device.name,
                total_bytes=device.total_bytes,
                free_bytes=device.free_bytes,
                auto_dtype=device.auto_dtype,
                replicas=tuple(sorted(str(replica) for replica in device.replicas.all())),
            )
            for device in row.devices.all()
        ),
    )
