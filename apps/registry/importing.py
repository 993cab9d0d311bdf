"""Runs the converter as a limited child process and reads its JSON lines. Knows no database.

The child reads files that nobody has checked; a fault in it must end nothing but itself.
"""

import contextlib
import json
import os
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from apps.registry.exceptions import ModelImportError
from apps.registry.types import (
    ConversionDone,
    ConversionEvent,
    ImportProgress,
    SourceIdentified,
)

_MAX_LINE_BYTES = 1 << 20
_MAX_ERROR_BYTES = 1 << 12
_TERMINATE_GRACE_S = 5.0
_WAIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionLimits:
    """What the child may use. ``memory_bytes`` is address space beside the mapped source."""

    memory_bytes: int = 16 << 30
    file_bytes: int = 1 << 40
    cpu_s: int = 4 * 3600
    time_s: float = 4 * 3600


def run_conversion(
    *,
    source: Path,
    output: Path,
    project_root: Path,
    expected_sha256: str = "",
    limits: ConversionLimits = ConversionLimits(),
    on_wait: Callable[[], None] = lambda: None,
) -> Generator[ConversionEvent, None, None]:
    """Convert ``source`` into ``output``; yields events, the last is ConversionDone.

    Closing the generator ends the child. Nothing is left then, nor after an error. ``on_wait`` is
    called each second in which there is none; it may raise.

    Raises:
        ModelImportError: the artifact was refused, or the child failed or ran out of a limit.
    """
    deadline = time.monotonic() + limits.time_s
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-m", "engine_service.convert", "--exit-with-parent"]
        command += ["--source", str(source.absolute()), "--output", str(output.absolute())]
        if expected_sha256:
            command += ["--sha256", expected_sha256]
        child = subprocess.Popen(
            command,
            cwd=project_root,
            env=_environment(),
            stdin=subprocess.PIPE,  # it closes when we die, however we die
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            _limit(child.pid, limits=limits, source=source)
            last: ConversionEvent | None = None
            assert child.stdout is not None
            for line in _lines(child.stdout, deadline=deadline, on_wait=on_wait):
                last = _event(line)
                yield last
            if not isinstance(last, ConversionDone):
                raise ModelImportError(_failure(child.wait(), errors=errors))
        finally:
            _end(child)
            # The child removes its work itself unless it was killed.
            shutil.rmtree(output.with_name(f".{output.name}.partial"), ignore_errors=True)


def _environment() -> dict[str, str]:
    """Only what Python needs: no secret of this process is the converter's business."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {name: os.environ[name] for name in kept if name in os.environ} | threads


def _limit(pid: int, *, limits: ConversionLimits, source: Path) -> None:
    """Set from outside, because code between fork and exec is unsafe in a threaded process."""
    mapped = source.stat().st_size if source.is_file() else _directory_bytes(source)
    bounds = {
        resource.RLIMIT_AS: limits.memory_bytes + mapped,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_CPU: limits.cpu_s,
        resource.RLIMIT_CORE: 0,
    }
    with contextlib.suppress(ProcessLookupError):  # it ended already; its exit code tells why
        for kind, bound in bounds.items():
            _, hard = resource.prlimit(pid, kind)
            most = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
            resource.prlimit(pid, kind, (most, most))


def _directory_bytes(directory: Path) -> int:
    if not directory.is_dir():
        return 0
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())


def _lines(stream: IO[bytes], *, deadline: float, on_wait: Callable[[], None]) -> Iterator[bytes]:
    """Complete lines until the stream ends; too slow or too long ends in an error."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            if not selector.select(timeout=min(left_s, _WAIT_S)):
                if left_s <= _WAIT_S:
                    raise ModelImportError("The conversion took too long and was stopped.")
                on_wait()
                continue
            chunk = os.read(stream.fileno(), 1 << 16)
            if not chunk:
                return
            *complete, pending = (pending + chunk).split(b"\n")
            yield from complete
            if len(pending) > _MAX_LINE_BYTES:
                raise ModelImportError("The converter wrote something unexpected.")


def _event(line: bytes) -> ConversionEvent:
    try:
        fields: dict[str, Any] = json.loads(line)
        match fields.pop("event"):
            case "source":
                return SourceIdentified(**fields)
            case "progress":
                return ImportProgress(**fields)
            case "done":
                return ConversionDone(**fields)
            case "error":
                raise ModelImportError(fields["message"], param=fields["field"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelImportError("The converter wrote something unexpected.") from error
    raise ModelImportError("The converter wrote something unexpected.")


def _failure(exit_code: int, *, errors: IO[bytes]) -> str:
    size_bytes = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size_bytes - _MAX_ERROR_BYTES))
    lines = errors.read().decode("utf-8", errors="replace").strip().splitlines()
    how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
    return f"The converter ended with {how}: {lines[-1] if lines else 'it said nothing'}"


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask the child to clean up and go, then make it."""
    if child.stdout is not None:
        child.stdout.close()
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_TERMINATE_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
    child.wait()
    if child.stdin is not None:
        child.stdin.close()
