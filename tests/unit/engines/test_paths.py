"""Where sockets and logs lie."""

import shutil
import stat
from pathlib import Path

import pytest

from apps.engines.exceptions import AgentError
from apps.engines.paths import agent_paths


def test_a_short_var_holds_its_own_sockets(tmp_path: Path) -> None:
    var = Path(f"/tmp/v{tmp_path.name[:20]}-{id(tmp_path)}")
    try:
        paths = agent_paths(var)
        assert paths.run_dir == var / "run"
        assert stat.S_IMODE(paths.run_dir.stat().st_mode) == 0o700
        assert paths.socket(process_id=3, epoch=12) == var / "run" / "e3-12.sock"
        assert paths.log("chat-0") == var / "logs" / "engine-chat-0.log"
        assert agent_paths(var) == paths
    finally:
        shutil.rmtree(var, ignore_errors=True)


def test_a_long_var_has_its_sockets_elsewhere_and_alone(tmp_path: Path) -> None:
    one, other = (tmp_path / (letter * 100) for letter in "ab")
    first, second = agent_paths(one), agent_paths(other)
    try:
        assert len(str(first.socket(process_id=999, epoch=999999))) < 108
        assert first.run_dir != second.run_dir
        assert agent_paths(one).run_dir == first.run_dir
        assert stat.S_IMODE(first.run_dir.stat().st_mode) == 0o700
        assert first.log_dir == one / "logs"
    finally:
        first.run_dir.rmdir()
        second.run_dir.rmdir()


def test_a_directory_open_to_others_is_closed(tmp_path: Path) -> None:
    paths = agent_paths(tmp_path)
    paths.run_dir.chmod(0o777)
    assert stat.S_IMODE(agent_paths(tmp_path).run_dir.stat().st_mode) == 0o700
    if paths.run_dir.parent != tmp_path:
        paths.run_dir.rmdir()


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    var = tmp_path / ("x" * 100)
    run_dir = agent_paths(var).run_dir
    run_dir.rmdir()
    run_dir.symlink_to(tmp_path)
    try:
        with pytest.raises(AgentError, match="not a directory of this user"):
            agent_paths(var)
    finally:
        run_dir.unlink()
