"""Makes the Unix socket that only our own user can reach, and knows who is at the other end."""

import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

_PEER_CREDENTIALS: Final = struct.Struct("3i")
_MAX_PATH_BYTES: Final = 107  # sun_path of Linux, less its terminating zero
_BACKLOG: Final = 128
_ANSWER_TIMEOUT_S: Final = 1.0


class SocketError(Exception):
    """The socket cannot be made where it was asked for."""


class SocketInUse(SocketError):
    """Another process still listens there; it may be gone later."""


class SocketFile:
    """A listening Unix socket of mode 0600 and its file.

    Raises:
        SocketError: the place is unsafe or unusable.
        SocketInUse: another process listens there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise SocketError(f"socket path is over {_MAX_PATH_BYTES} bytes: {path}")
        _check_directory(path.parent)
        _remove_stale(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self.socket.bind(str(path))
            path.chmod(0o600)  # nobody can connect before the listen below
            self._identity = _identity(path)
            self.socket.listen(_BACKLOG)
        except OSError as error:
            self.socket.close()
            raise SocketError(f"cannot listen on {path}: {error}") from error

    def remove(self) -> None:
        """Remove the file if it is still the one made here; idempotent."""
        try:
            if _identity(self.path) == self._identity:
                self.path.unlink()
        except FileNotFoundError:
            pass


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end, as the kernel saw it connect."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _pid, uid, _gid = _PEER_CREDENTIALS.unpack(data)
    return int(uid)


def _identity(path: Path) -> tuple[int, int]:
    """Tell one file from another at the same path; inode numbers alone are used again."""
    found = path.stat()
    return found.st_ino, found.st_ctime_ns


def _check_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise SocketError(f"cannot use {directory} for the socket: {error}") from error
    if found.st_uid != os.geteuid():
        raise SocketError(f"{directory} belongs to another user: the socket would not be safe")
    if stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
        raise SocketError(f"others can write in {directory}: the socket would not be safe")


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ANSWER_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            raise SocketInUse(f"cannot tell whether {path} is in use: {error}") from error
    raise SocketInUse(f"another process listens on {path}")
