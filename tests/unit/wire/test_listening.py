import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_service.server.listening import SocketError, SocketFile, SocketInUse, peer_uid


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run" / "engine.sock"


def test_only_our_user_can_reach_the_socket(path: Path) -> None:
    file = SocketFile(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        accepted, _ = file.socket.accept()
        with accepted:
            assert peer_uid(accepted) == os.geteuid()
    file.socket.close()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_directory_that_others_can_write_is_refused(path: Path, mode: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(mode)
    with pytest.raises(SocketError, match="others can write"):
        SocketFile(path)
    assert not path.exists()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    SocketFile(path).socket.close()
    assert path.exists()
    file = SocketFile(path)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
    file.socket.close()


def test_a_socket_that_answers_is_left_alone(path: Path) -> None:
    file = SocketFile(path)
    with pytest.raises(SocketInUse, match="another process listens"):
        SocketFile(path)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
    file.socket.close()


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_text("precious")
    with pytest.raises(SocketError, match="not a socket"):
        SocketFile(path)
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_says_so(tmp_path: Path) -> None:
    with pytest.raises(SocketError, match="over 107 bytes"):
        SocketFile(tmp_path / ("x" * 110))


def test_only_our_own_file_is_removed(path: Path) -> None:
    first = SocketFile(path)
    first.socket.close()
    second = SocketFile(path)
    first.remove()
    assert path.exists()
    second.socket.close()
    second.remove()
    second.remove()
    assert not path.exists()
