"""Builds the compiled step: ``python -m engine_service.kernels.cpu.build``.

Needs a C++17 compiler on x86-64 Linux. Without one it says so and succeeds: the engine then runs
its reference kernels, which are slower. Imports neither torch nor anything else of the engine.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parent / "src"
OUTPUT: Final = Path(__file__).parent / "_build"

_FLAGS: Final = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror",
    # False alarms of GCC 12 inside its own headers of vector functions.
    "-Wno-ignored-attributes",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
)
_AVX512_FLAGS: Final = ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
_BF16_FLAGS: Final = ("-mavx512vnni", "-mavx512bf16")
# One source file an instruction set; the others must run on any processor.
_FLAGS_OF: Final = {
    "isa_avx2.cpp": ("-mavx2", "-mfma"),
    "isa_avx512.cpp": _AVX512_FLAGS,
    "isa_avx512_bf16.cpp": (*_AVX512_FLAGS, *_BF16_FLAGS),
    "isa_amx.cpp": (*_AVX512_FLAGS, *_BF16_FLAGS, "-mamx-tile", "-mamx-bf16"),
}


class BuildError(Exception):
    """The compiler is there but does not build these sources."""


def library_path() -> Path:
    """Where the library of exactly these sources is or would be."""
    digest = hashlib.sha256(repr((_FLAGS, _FLAGS_OF)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return OUTPUT / f"step-{digest.hexdigest()[:16]}.so"


def find_compiler() -> str | None:
    """``CXX`` of the environment, else g++, else c++."""
    names = [name for name in (os.environ.get("CXX"), "g++", "c++") if name]
    return next((found for name in names if (found := shutil.which(name))), None)


def obstacle() -> str | None:
    """Say why nothing can be built here, or None."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"{platform.system()} on {platform.machine()} has no compiled kernels"
    if find_compiler() is None:
        return "there is no C++ compiler (sudo apt-get install g++)"
    return None


def build() -> Path:
    """Compile and link; leaves the library alone where it is built already. Raises BuildError."""
    path = library_path()
    if path.exists():
        return path
    compiler = find_compiler()
    if compiler is None:
        raise BuildError(obstacle())
    OUTPUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUTPUT) as scratch:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [Path(scratch) / f"{source.stem}.o" for source in sources]
        commands = [
            [compiler, *_FLAGS, *_FLAGS_OF.get(source.name, ()), "-c", str(source), "-o", str(item)]
            for source, item in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        linked = Path(scratch) / path.name
        _run([compiler, "-shared", "-pthread", *map(str, objects), "-o", str(linked)])
        # In one move: whoever else builds or loads it meets a whole library or none.
        linked.replace(path)
    for old in OUTPUT.glob("step-*.so"):
        if old != path:
            old.unlink(missing_ok=True)
    return path


def main() -> int:
    if reason := obstacle():
        print(f"The engine will run its slower reference kernels: {reason}")  # noqa: T201
        return 0
    if not library_path().exists():
        print("Building the compiled kernels")  # noqa: T201
    try:
        build()
    except BuildError as error:
        print(f"{error}\nThe compiled kernels could not be built", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(done.stderr[-4000:])


if __name__ == "__main__":
    sys.exit(main())
