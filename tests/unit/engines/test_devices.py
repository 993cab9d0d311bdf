"""What a machine says of its devices, read from files and from what NVIDIA's tool prints."""

import shutil
from pathlib import Path

import pytest

from apps.engines.devices import cores_usable, gpus_read, node_report, processor
from apps.engines.types import DeviceReport

GIB = 2**30

MEMINFO = """MemTotal:       16777216 kB
MemFree:         1048576 kB
MemAvailable:    8388608 kB
"""


def root(directory: Path, **files: str) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def memory(device: DeviceReport) -> tuple[int, int]:
    return device.total_bytes, device.free_bytes


def test_a_machine_without_a_cgroup(tmp_path: Path) -> None:
    assert memory(processor(root=root(tmp_path))) == (16 * GIB, 8 * GIB)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max", (16 * GIB, 8 * GIB)),
        (str(4 * GIB), (4 * GIB, 2 * GIB)),  # 3 are used, 1 of which is cache
        (str(GIB), (GIB, 0)),
        (str(64 * GIB), (16 * GIB, 8 * GIB)),
    ],
)
def test_a_cgroup_of_version_2(limit: str, expected: tuple[int, int], tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory.max": f"{limit}\n",
        "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file 7\n",
    }
    assert memory(processor(root=root(tmp_path, **files))) == expected


def test_a_cgroup_of_version_1(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(4 * GIB),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(2 * GIB),
        "sys/fs/cgroup/memory/memory.stat": f"cache 5\ntotal_inactive_file {GIB}\n",
    }
    assert memory(processor(root=root(tmp_path, **files))) == (4 * GIB, 3 * GIB)


@pytest.mark.parametrize(("quota", "most"), [("100000 100000", 1), ("50000 100000", 1)])
def test_cores_of_a_cgroup(quota: str, most: int, tmp_path: Path) -> None:
    assert cores_usable(root=root(tmp_path, **{"sys/fs/cgroup/cpu.max": quota})) == most


def test_cores_without_a_quota(tmp_path: Path) -> None:
    free = cores_usable(root=root(tmp_path))
    assert free >= 1
    assert cores_usable(root=root(tmp_path, **{"sys/fs/cgroup/cpu.max": "max 100000"})) == free


def test_what_an_engine_computes_in_by_the_processors_flags(tmp_path: Path) -> None:
    text = "processor : 0\nmodel name\t: A processor\nflags\t: fpu avx2 amx_bf16\n"
    found = processor(root=root(tmp_path, **{"proc/cpuinfo": text}))
    assert (found.name, found.auto_dtype) == ("A processor", "bfloat16")


def test_gpus() -> None:
    text = (
        "0, GPU-5c8a1f0e-1111-2222-3333-444455556666, NVIDIA H100 80GB HBM3, 81559, 81008\n"
        "1, GPU-6d9b2a1f-1111-2222-3333-444455556666, NVIDIA A100-SXM4-40GB, 40960, 1024\n"
        "2, GPU-7e0c3b2a-1111-2222-3333-444455556666, NVIDIA T4, [N/A], [N/A]\n"
        "Unable to determine the device handle for GPU 0000:03:00.0: Unknown Error\n\n"
    )
    first, second = gpus_read(text)
    assert first == DeviceReport(
        kind="cuda",
        index=0,
        uid="GPU-5c8a1f0e-1111-2222-3333-444455556666",
        name="NVIDIA H100 80GB HBM3",
        total_bytes=81559 * 2**20,
        free_bytes=81008 * 2**20,
        auto_dtype="bfloat16",
    )
    assert (second.index, second.free_bytes) == (1, GIB)
    assert gpus_read("") == ()


def test_this_machine(tmp_path: Path) -> None:
    report = node_report(tmp_path / "not" / "yet")
    assert report.name
    assert report.n_cores >= 1
    device = report.devices[0]
    assert (device.kind, device.uid) == ("cpu", "cpu")
    assert 0 < device.free_bytes <= device.total_bytes
    disk = report.devices[-1]
    assert (disk.kind, disk.uid, disk.auto_dtype) == ("disk", "disk", "")
    usage = shutil.disk_usage(tmp_path)
    assert disk.total_bytes == usage.total
    # Some is left for others, who write meanwhile.
    assert abs(disk.free_bytes - (usage.free - 256 * 2**20)) < GIB
    assert not (tmp_path / "not").exists()
