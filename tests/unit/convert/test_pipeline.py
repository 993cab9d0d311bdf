"""A model directory appears whole or not at all, whatever happens on the way."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine_service.convert.errors import ConversionError
from engine_service.convert.pipeline import Progress, convert
from engine_service.errors import ModelError
from engine_service.models.manifest import (
    ManifestSource,
    hash_file,
    read_manifest,
    verify_manifest,
)
from tests.models import ROOT
from tests.unit.convert.builders import CONTEXT, VOCAB, llama_gguf, weights
from tests.waiting import wait_until


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "model.gguf"
    path.parent.mkdir()
    path.write_bytes(llama_gguf())
    return path


def quiet(_: ManifestSource | Progress) -> None:
    """Hears nothing."""


def test_the_manifest_names_every_file_and_the_source(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "models" / "tiny" / "1"
    manifest = convert(source, output, report=quiet)
    assert manifest == verify_manifest(output)
    assert manifest.source == ManifestSource(name="model.gguf", sha256=hash_file(source))
    assert (manifest.architecture, manifest.dtype, manifest.license) == (
        "LlamaForCausalLM",
        "float32",
        "mit",
    )
    assert (manifest.context_length, manifest.vocab_size) == (CONTEXT, VOCAB)
    assert manifest.n_parameters == sum(values.size for values in weights().values())
    assert {*manifest.files, "manifest.json"} == {path.name for path in output.iterdir()}
    assert [path.name for path in output.parent.iterdir()] == ["1"]


def test_the_same_source_gives_the_same_bytes(tmp_path: Path, source: Path) -> None:
    first = convert(source, tmp_path / "1", report=quiet)
    assert convert(source, tmp_path / "2", report=quiet) == first


def test_an_existing_directory_is_never_written(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "keep").write_text("mine")
    with pytest.raises(ConversionError, match="already exists"):
        convert(source, output, report=quiet)
    assert [path.name for path in output.iterdir()] == ["keep"]


def test_an_interruption_at_any_event_leaves_nothing(tmp_path: Path, source: Path) -> None:
    n_events = 0

    def count(_: ManifestSource | Progress) -> None:
        nonlocal n_events
        n_events += 1

    convert(source, tmp_path / "whole", report=count)
    assert n_events == 12
    for stop_at in range(n_events):
        left = stop_at

        def interrupt(_: ManifestSource | Progress) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        output = tmp_path / "models" / str(stop_at)
        with pytest.raises(KeyboardInterrupt):
            convert(source, output, report=interrupt)
        assert not output.parent.exists() or list(output.parent.iterdir()) == []


def test_what_a_killed_import_left_is_removed_by_the_next(tmp_path: Path, source: Path) -> None:
    left_over = tmp_path / ".out.partial"
    (left_over / "model").mkdir(parents=True)
    (left_over / "model" / "model.safetensors").write_bytes(b"half")
    convert(source, tmp_path / "out", report=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    verify_manifest(tmp_path / "out")


def test_two_imports_into_one_directory_do_not_meet(tmp_path: Path, source: Path) -> None:
    work = tmp_path / ".out.partial"
    work.mkdir()
    (work / "model").mkdir()
    lock = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConversionError, match="another import"):
            convert(source, tmp_path / "out", report=quiet)
        assert (work / "model").exists()
    finally:
        os.close(lock)


def run_command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "engine_service.convert", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_command_speaks_json_lines(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out"
    command = run_command("--source", str(source), "--output", str(output))
    lines, _ = command.communicate(timeout=60)
    events = [json.loads(line) for line in lines.splitlines()]
    assert command.returncode == 0
    assert events[0] == {"event": "source", "name": "model.gguf", "sha256": hash_file(source)}
    assert {"event": "progress", "stage": "convert", "done": 11, "total": 11} in events
    manifest = json.loads((output / "manifest.json").read_text())
    assert events[-1] == {
        "event": "done",
        "manifest": manifest,
        "manifest_sha256": hash_file(output / "manifest.json"),
        "size_bytes": sum(path.stat().st_size for path in output.iterdir()),
    }


def test_the_command_reports_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(llama_gguf({"general.architecture": "mamba"}))
    command = run_command(
        "--source", str(tmp_path / "model.gguf"), "--output", str(tmp_path / "out")
    )
    lines, _ = command.communicate(timeout=60)
    assert command.returncode == 1
    assert json.loads(lines.splitlines()[-1]) == {
        "event": "error",
        "message": "architecture 'mamba' is not supported; 'llama' is",
        "field": "general.architecture",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_terminated_command_cleans_up(tmp_path: Path) -> None:
    """The source is a large archive, so that the signal comes while it is being unpacked."""
    source = tmp_path / "big.zip"
    subprocess.run([sys.executable, "-c", _WRITE_BIG_ARCHIVE, str(source)], check=True, timeout=60)
    command = run_command("--source", str(source), "--output", str(tmp_path / "out"))
    partial = tmp_path / ".out.partial" / "scratch" / "model.gguf"
    wait_until("the archive is being unpacked", partial.exists, timeout_s=30)
    command.send_signal(signal.SIGTERM)
    command.communicate(timeout=30)
    assert command.returncode == 143
    assert [path.name for path in tmp_path.iterdir()] == ["big.zip"]


_WRITE_BIG_ARCHIVE = """
import os, sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
    with archive.open("model.gguf", "w", force_zip64=True) as file:
        for _ in range(1024):
            file.write(os.urandom(1 << 15) + bytes(31 << 15))
"""


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: (d / "config.json").write_text("{}"), "bytes; the manifest says"),
        (lambda d: (d / "tokenizer.json").unlink(), "missing or not a plain file"),
        (lambda d: (d / "more.safetensors").write_bytes(b""), "not listed in the manifest"),
        (lambda d: (d / "manifest.json").unlink(), "no readable manifest.json"),
        (lambda d: (d / "manifest.json").write_text("{}"), "not a valid manifest"),
        (lambda d: _flip_last_byte(d / "model.safetensors"), "was altered"),
        (lambda d: _edit_manifest(d, format=2), "has format 2"),
        (lambda d: _edit_manifest(d, files={"../x": _FACTS}), "'../x', which is not a file name"),
        (lambda d: _edit_manifest(d, more=1), "not a valid manifest"),
    ],
)
def test_a_changed_directory_does_not_verify(
    tmp_path: Path, source: Path, spoil: Any, says: str
) -> None:
    output = tmp_path / "out"
    convert(source, output, report=quiet)
    spoil(output)
    with pytest.raises(ModelError, match=says.replace(".", r"\.")):
        verify_manifest(output)


def test_a_link_in_place_of_a_file_does_not_verify(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out"
    convert(source, output, report=quiet)
    (output / "config.json").rename(tmp_path / "config.json")
    (output / "config.json").symlink_to(tmp_path / "config.json")
    assert "config.json" in read_manifest(output).files
    with pytest.raises(ModelError, match="not a plain file"):
        verify_manifest(output)


_FACTS = {"sha256": "0" * 64, "size_bytes": 1}


def _edit_manifest(directory: Path, **changes: Any) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
