"""``doctor`` on the machine and what is installed on it."""

import hashlib
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from apps.console.doctor import host
from tests.factories import AuditEventFactory, ModelVersionFactory
from tests.integration.maintenance.places import file_write
from tests.integration.maintenance.telling import told
from tests.processes import ROOT
from tests.rows import all_of


def test_disks(var: Path) -> None:
    assert told(host.look_at_disks())[0][0] == "disk of VAR"
    assert host.disk_finding("disk", var, least_bytes=0, good_bytes=1).status == "ok"
    assert host.disk_finding("disk", var, least_bytes=0, good_bytes=2**60).status == "warning"
    assert host.disk_finding("disk", var, least_bytes=2**60).status == "failure"


@pytest.mark.django_db
def test_clocks() -> None:
    assert [status for _, status, _ in told(host.look_at_clock())] == ["ok"]
    assert [status for _, status, _ in told(host.look_at_database_clock())] == ["ok"]
    event = AuditEventFactory()
    all_of(type(event)).update(at=timezone.now() + timedelta(minutes=5))
    ((_, status, seen),) = told(host.look_at_database_clock())
    assert status == "warning"
    assert re.fullmatch(
        r"the newest audit event is (299|300) s in the future: the clock was set back", seen
    )


def test_versions_beside_the_locks(tmp_path: Path) -> None:
    assert [status for _, status, _ in told(host.packages_findings(ROOT / "requirements"))] == [
        "ok"
    ]
    assert "no lock" in told(host.packages_findings(tmp_path))[0][2]
    file_write(tmp_path / "base.txt", "django==1.0 \\\n    --hash=x\nno-such[a]==2.0\n")
    ((_, status, seen),) = told(host.packages_findings(tmp_path))
    assert status == "warning"
    assert seen.endswith("(lock: 1.0), no-such missing (lock: 2.0)")


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("django-insecure-0123456789-0123456789-0123456789-0123456789", "failure"),
        ("only-for-tests-0123456789-0123456789-0123456789-0123456789", "failure"),
        ("x" * 60, "failure"),
        ("short-but-various", "warning"),
        ("a0b1c2d3e4f5g6h7i8j9k0l1m2n3o4p5q6r7s8t9u0v1w2x3y4z5", "ok"),
    ],
)
def test_secret_keys(var: Path, settings: Any, key: str, status: str) -> None:
    settings.SECRET_KEY = key
    found = next(each for each in host.look_at_secrets() if each.name == "secret key")
    assert found.status == status
    assert key not in found.seen + found.remedy


def test_modes_of_files(var: Path) -> None:
    secret = file_write(var / "secret_key")
    expected = {
        (0o700, 0o600): ["ok"],
        (0o755, 0o600): ["warning", "ok"],
        (0o700, 0o640): ["failure", "ok"],
        (0o700, 0o602): ["failure", "ok"],
        (0o770, 0o644): ["failure", "failure"],
    }
    for (folder_mode, file_mode), statuses in expected.items():
        var.chmod(folder_mode)
        secret.chmod(file_mode)
        found = told(host.modes_findings(iter([var, secret])))
        assert [status for _, status, _ in found] == statuses
    var.chmod(0o700)


@pytest.mark.django_db
def test_models_by_their_manifests(var: Path) -> None:
    assert told(host.look_at_models())[0][1] == "warning"
    directory = var / "models" / "tiny" / "1"
    weights = file_write(directory / "weights", "w" * 100)
    manifest = {"files": {"weights": {"sha256": "00", "size_bytes": 100}}}
    text = file_write(directory / "manifest.json", json.dumps(manifest)).read_bytes()
    version = ModelVersionFactory(
        model__name="tiny", manifest=manifest, manifest_sha256=hashlib.sha256(text).hexdigest()
    )

    def said() -> tuple[str, str]:
        ((name, status, seen),) = told(host.look_at_models())
        assert name == f"model {version}"
        return status, seen

    assert said() == ("ok", "1 files, 0 MB, as imported")
    weights.write_text("w" * 99)
    assert said() == ("failure", f"{weights} has 99 bytes, and 100 are listed")
    weights.unlink()
    assert said() == ("failure", f"{weights} has no bytes, and 100 are listed")
    weights.write_text("w" * 100)
    extra = file_write(directory / "template", "x")
    assert said() == ("failure", f"{extra} has 1 bytes, and none are listed")
    extra.unlink()
    (directory / "manifest.json").write_text("{}")
    assert said() == ("failure", "its manifest is not the one that was imported")
    (directory / "manifest.json").unlink()
    assert said()[1] == f"{directory / 'manifest.json'}: No such file or directory"
