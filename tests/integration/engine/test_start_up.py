"""How long the real small model takes from the process's start to its first answer, and how much
memory: weights are mapped from their file, so that they are never there twice beside it."""

import re
import time
from pathlib import Path

import pytest

from tests.models import smollm2_dir
from tests.processes import running_engine

pytestmark = pytest.mark.prove

MIB = 2**20


def status_bytes(pid: int, name: str) -> int:
    """Read one of the sizes that the kernel keeps of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None, f"no {name} of process {pid}"
    return int(found[1]) * 1024


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_start_up_and_loading_are_measured(dtype: str, tmp_path: Path) -> None:
    model_dir = smollm2_dir()
    file_bytes = (model_dir / "model.safetensors").stat().st_size
    options = ("--dtype", dtype, "--kv-cache-tokens", "4096")
    for epoch in (1, 2):  # the second finds the file in the page cache
        started_s = time.monotonic()
        with running_engine(model_dir, tmp_path, *options, epoch=epoch) as engine:
            stats = engine.stats()
            ready_s = time.monotonic() - started_s
            peak = status_bytes(engine.process.pid, "VmHWM")
            anonymous = status_bytes(engine.process.pid, "RssAnon")
            (loaded,) = re.findall(r"loaded .*", engine.log.read_text())
        print(
            f"{dtype}, start {epoch}: ready after {ready_s:.1f} s; {loaded}; resident "
            f"{stats.rss_bytes / MIB:.0f} MiB, peak {peak / MIB:.0f}, of it anonymous "
            f"{anonymous / MIB:.0f}; weights' file {file_bytes / MIB:.0f}"
        )
        # What the peak had more is the file's pages, of which none are needed any longer.
        assert peak - stats.rss_bytes < 1.05 * file_bytes
