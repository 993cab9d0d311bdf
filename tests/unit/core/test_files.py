"""Locks, logs and secrets below VAR."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from apps.core.files import LockHeld, log_open, log_tail, secret_write, var_lock


def test_a_lock_is_held_by_one_and_names_its_holder(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.lock"
    said = rf"another thing \(pid {os.getpid()}\) .*set VAR"
    with (
        var_lock(file, holder="thing"),
        pytest.raises(LockHeld, match=said),
        var_lock(file, holder="thing"),
    ):
        pass
    with var_lock(file, holder="thing"):
        assert file.read_text() == str(os.getpid())


def test_a_lock_goes_to_who_waits_for_it(tmp_path: Path) -> None:
    file = tmp_path / "a.lock"
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with var_lock(file, holder="thing"):
            held.set()
            let_go.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)
    with pytest.raises(LockHeld), var_lock(file, holder="thing", wait_s=0.15):
        pass
    releasing = threading.Timer(0.2, let_go.set)
    releasing.start()
    with var_lock(file, holder="thing", wait_s=10):
        assert let_go.is_set()
    holder.join()


def test_a_lock_goes_with_a_holder_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from apps.core.files import var_lock\n"
        "with var_lock(Path(sys.argv[1]), holder='thing'): os.kill(os.getpid(), 9)"
    )
    file = tmp_path / "a.lock"
    assert subprocess.run([sys.executable, "-c", code, str(file)]).returncode == -9
    with var_lock(file, holder="thing"):
        pass


def test_logs_append_and_a_large_one_is_put_aside(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "a.log"
    for line in (b"one\n", b"two\n"):
        descriptor = log_open(file)
        os.write(descriptor, line)
        os.close(descriptor)
    assert log_tail(file, n_lines=9) == ["one", "two"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with file.open("ab") as handle:
        handle.truncate(5 * 1024 * 1024 + 1)
    os.close(log_open(file))
    assert file.read_bytes() == b""
    assert file.with_suffix(".log.1").stat().st_size == 5 * 1024 * 1024 + 1


def test_a_tail_reads_a_bounded_part(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_bytes(b"x" * 1_000_000 + b"\nlast \xff line\n")
    assert log_tail(file, n_lines=5, n_bytes=20) == ["x" * 7, "last \ufffd line"]
    assert log_tail(tmp_path / "absent.log", n_lines=5) == []


def test_a_secret_is_its_owners_and_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text("old and open to all")
    file.chmod(0o644)
    secret_write(file, "new")
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
