"""A machine with GPUs, and models of a known shape to place there."""

from pathlib import Path
from typing import Any

import pytest

from apps.deployments.services import replicas_reconcile
from apps.engines.models import Device
from tests.factories import DeviceFactory, ModelVersionFactory

GIB, MIB = 2**30, 2**20
SHAPE = {
    "n_layers": 8,
    "n_heads": 8,
    "n_kv_heads": 4,
    "head_dim": 64,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "vocab_size": 1024,
}
BLOCK = 2 * 8 * 4 * 64 * 16 * 2  # K and V, layers, heads, values, tokens, bytes
TWO: dict[str, Any] = {"device_class": "cuda", "tensor_parallel": 2}
TIERS: dict[str, Any] = {
    "device_class": "cuda",
    "host_kv_cache_bytes": 4 * GIB,
    "disk_kv_cache_bytes": 8 * GIB,
}
SLEEP: dict[str, Any] = {"device_class": "cuda", "sleep_after_s": 300}


def shaped(**changed: Any) -> Any:
    shape = {**SHAPE, **changed.pop("shape", {})}
    return ModelVersionFactory(shape=shape, context_length=4096, **changed)


@pytest.fixture
def machine(models_dir: Path) -> Device:
    """A processor, a disk, and two GPUs with 8 GiB each; the processor is returned."""
    cpu: Device = DeviceFactory(node__name="box", free_bytes=32 * GIB, total_bytes=64 * GIB)
    DeviceFactory(
        node=cpu.node, kind="disk", uid="disk", free_bytes=20 * GIB, total_bytes=90 * GIB,
        auto_dtype="",
    )  # fmt: skip
    for index in range(2):
        DeviceFactory(
            node=cpu.node, kind="cuda", index=index, uid=f"GPU-{index}",
            free_bytes=8 * GIB, total_bytes=8 * GIB,
        )  # fmt: skip
    return cpu


def reconcile(machine: Device, **options: Any) -> Any:
    return replicas_reconcile(node_id=machine.node_id, **options)
