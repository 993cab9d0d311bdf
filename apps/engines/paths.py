"""Where the agent keeps sockets and logs, below VAR."""

import contextlib
import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apps.engines.exceptions import AgentError

# The kernel's bound for the path of a Unix socket is 107 bytes; some libraries copy a little more.
_SOCKET_PATH_MOST_BYTES: Final = 100
_LONGEST_SOCKET_NAME: Final = "e999999999-999999999.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPaths:
    run_dir: Path
    log_dir: Path
    journal_dir: Path
    kv_cache_dir: Path

    def socket(self, *, process_id: int, epoch: int) -> Path:
        """A path of its own for every start: an engine that still drains removes its own socket
        file at its end, never that of its successor."""
        return self.run_dir / f"e{process_id}-{epoch}.sock"

    def log(self, name: str) -> Path:
        return self.log_dir / f"engine-{name}.log"


def journal_dir_of(var_dir: Path) -> Path:
    """Return where this machine's engines leave their journals; they make it themselves."""
    return var_dir / "journal"


def kv_cache_dir_of(var_dir: Path) -> Path:
    """Return where this machine's engines keep blocks of their caches, in files without names."""
    return var_dir / "kv-cache"


def run_dir_of(var_dir: Path) -> Path:
    """Return where sockets lie; makes nothing."""
    run_dir = var_dir / "run"
    if len(os.fsencode(run_dir / _LONGEST_SOCKET_NAME)) > _SOCKET_PATH_MOST_BYTES:
        digest = hashlib.sha256(os.fsencode(var_dir)).hexdigest()[:12]
        run_dir = Path(tempfile.gettempdir()) / f"nano-llm-{os.getuid()}-{digest}"
    return run_dir


def agent_paths(var_dir: Path) -> AgentPaths:
    """Make the directories and return them.

    Raises:
        AgentError: the socket directory belongs to someone else or others may write to it.
    """
    run_dir = run_dir_of(var_dir)
    log_dir = var_dir / "logs"
    log_dir.mkdir(parents=True, exist_ok=True)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        run_dir.mkdir(mode=0o700)
    status = run_dir.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise AgentError(f"{run_dir} is not a directory of this user; remove it or set VAR")
    run_dir.chmod(0o700)
    return AgentPaths(
        run_dir=run_dir,
        log_dir=log_dir,
        journal_dir=journal_dir_of(var_dir),
        kv_cache_dir=kv_cache_dir_of(var_dir),
    )


def socket_exists(path: Path) -> bool:
    return path.exists()


def sockets_in(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("e*.sock"))


def socket_remove(path: Path) -> None:
    """Remove what an engine that was killed could not remove itself."""
    path.unlink(missing_ok=True)
