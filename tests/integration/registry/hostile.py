"""Artifacts that were made to do harm: each is a function that writes one and returns its path,
with what its refusal must name. A payload that ran would make ``canary``."""

import gzip
import io
import json
import os
import pickle
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.unit.convert.builders import (
    F32,
    Tensor,
    entry,
    gguf,
    hugging_face_config,
    hugging_face_dir,
    llama_gguf,
    llama_metadata,
    safetensors,
    string,
    weights,
)

Build = Callable[[Path], Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    """field, says: what the refusal names, and what it says of it."""

    name: str
    build: Build
    field: str
    says: str
    sha256: str = ""


class _Payload:
    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._canary}",)


def payload(root: Path) -> bytes:
    """A pickle that makes the canary when it is read."""
    return pickle.dumps(_Payload(root / "canary"))


# -- builders ----------------------------------------------------------------------------------


def _file(name: str, content: bytes | Callable[[Path], bytes]) -> Build:
    def build(root: Path) -> Path:
        path = root / name
        path.write_bytes(content if isinstance(content, bytes) else content(root))
        return path

    return build


def _zip(members: Mapping[str, bytes | Callable[[Path], bytes]], *, mode: int = 0) -> Build:
    def build(root: Path) -> Path:
        with zipfile.ZipFile(root / "hostile.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = mode << 16
                archive.writestr(info, content if isinstance(content, bytes) else content(root))
        return root / "hostile.zip"

    return build


def _tar(*members: tuple[tarfile.TarInfo, bytes], name: str = "hostile.tar") -> Build:
    def build(root: Path) -> Path:
        with tarfile.open(root / name, "w:gz" if name.endswith("gz") else "w") as archive:
            for info, content in members:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return root / name

    return build


def _member(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def _directory(spoil: Callable[[Path], object], **config: Any) -> Build:
    def build(root: Path) -> Path:
        source = hugging_face_dir(root / "hostile", config=hugging_face_config(**config))
        spoil(source)
        return source

    return build


def _written(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda source: (source / name).write_bytes(data)


def _template(text: str) -> Build:
    return _file("hostile.gguf", llama_gguf({"tokenizer.chat_template": text}))


def _weights(header: Mapping[str, Any]) -> Build:
    return _directory(_written("model.safetensors", safetensors(weights(), header=header)))


def _header(text: str) -> Build:
    data = struct.pack("<Q", len(text)) + text.encode() + bytes(64)
    return _directory(_written("model.safetensors", data))


def _zip_that_lies(root: Path) -> Path:
    """Says to be small where its directory is, and is large."""
    path = _zip({"model.gguf": bytes(1 << 20)})(root)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (1 << 19).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def _zip_of_many(root: Path) -> Path:
    with zipfile.ZipFile(root / "many.zip", "w") as archive:
        for index in range(10_001):
            archive.writestr(f"{index}", b"")
    return root / "many.zip"


def _tar_with_holes(root: Path) -> Path:
    info = _member("model.gguf")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "model.gguf",
        "GNU.sparse.realsize": str(1 << 50),
    }
    content = b"0\n" + bytes(510)
    info.size = len(content)
    with tarfile.open(root / "holes.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(content))
    return root / "holes.tar"


def _tar_with_a_long_header(root: Path) -> Path:
    info = _member("model.gguf")
    info.pax_headers = {"comment": "x" * (1 << 20)}
    with tarfile.open(root / "long.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b""))
    return root / "long.tar"


def _gzip_bomb(root: Path) -> Path:
    """256 MB of nothing, in a quarter of one; a header before it that says less."""
    with gzip.open(root / "bomb.tar.gz", "wb", compresslevel=9) as file:
        info = _member("model.gguf")
        info.size = 256 << 20
        file.write(info.tobuf())
        for _ in range(256):
            file.write(bytes(1 << 20))
    return root / "bomb.tar.gz"


def _link_in_directory(source: Path) -> None:
    (source / "chat_template.jinja").symlink_to("/etc/passwd")


def _oversized(name: str, n_bytes: int) -> Callable[[Path], None]:
    def spoil(source: Path) -> None:
        with (source / name).open("r+b") as file:
            file.truncate(n_bytes)

    return spoil


def _tensor_at(offset: int) -> Build:
    tensors = [Tensor("token_embd.weight", (32, 32), F32, bytes(4096), offset=offset)]
    return _file("hostile.gguf", gguf(metadata=llama_metadata(), tensors=tensors))


_PICKLED = "pickled checkpoint"
_KEY = "model.norm.weight"
_NORM = {"dtype": "F32", "shape": [32], "data_offsets": [0, 128]}
_NAN = np.full((32,), np.nan, dtype=np.float32)

# -- the corpus --------------------------------------------------------------------------------

ARCHIVES = (
    Hostile(name="zip-up", build=_zip({"../../canary": b"x"}),
            field="../../canary", says="leads outside"),
    Hostile(name="zip-absolute", build=_zip({"/tmp/canary": b"x"}),
            field="/tmp/canary", says="leads outside"),
    Hostile(name="zip-link", build=_zip({"model.gguf": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777),
            field="model.gguf", says="is a symbolic link"),
    Hostile(name="zip-device", build=_zip({"model.gguf": b""}, mode=stat.S_IFCHR | 0o666),
            field="model.gguf", says="no plain file"),
    Hostile(name="zip-pickle", build=_zip({"m/config.json": b"{}", "x/data.pkl": payload}),
            field="data.pkl", says=_PICKLED),
    Hostile(name="zip-bomb", build=_zip({"model.gguf": bytes(64 << 20)}),
            field="source", says="no model does"),
    Hostile(name="zip-lying-size", build=_zip_that_lies, field="source", says="damaged"),
    Hostile(name="zip-many", build=_zip_of_many, field="source", says="more than 10000 members"),
    Hostile(name="tar-up", build=_tar((_member("../canary"), b"x")),
            field="../canary", says="leads outside"),
    Hostile(name="tar-absolute", build=_tar((_member("/tmp/canary"), b"x"), name="hostile.tgz"),
            field="/tmp/canary", says="leads outside"),
    Hostile(name="tar-link", build=_tar((_member("m", tarfile.SYMTYPE, link="/etc"), b""),
                                        (_member("m/passwd"), b"x")),
            field="m", says="symbolic link or a hard link"),
    Hostile(name="tar-hard-link",
            build=_tar((_member("model.gguf", tarfile.LNKTYPE, link="/etc/passwd"), b"")),
            field="model.gguf", says="symbolic link or a hard link"),
    Hostile(name="tar-device", build=_tar((_member("model.gguf", tarfile.CHRTYPE), b"")),
            field="model.gguf", says="no plain file"),
    Hostile(name="tar-pipe", build=_tar((_member("model.gguf", tarfile.FIFOTYPE), b"")),
            field="model.gguf", says="no plain file"),
    Hostile(name="tar-holes", build=_tar_with_holes, field="model.gguf", says="file with holes"),
    Hostile(name="tar-long-header", build=_tar_with_a_long_header,
            field="././@PaxHeader", says="has a header of"),
    Hostile(name="tar-bomb", build=_gzip_bomb, field="source", says="no model does"),
)  # fmt: skip

CODE = (
    Hostile(name="pickle", build=_file("model.pt", payload), field="model.pt", says=_PICKLED),
    Hostile(name="pickle-as-gguf", build=_file("model.gguf", payload),
            field="magic", says="not a GGUF file"),
    Hostile(name="pickle-as-zip", build=_file("model.zip", payload),
            field="source", says="damaged"),
    Hostile(name="pickle-in-directory",
            build=_directory(lambda source: (source / "pytorch_model.bin").write_bytes(
                payload(source.parent))),
            field="pytorch_model.bin", says=_PICKLED),
    Hostile(name="pickle-as-safetensors",
            build=_directory(lambda source: (source / "model.safetensors").write_bytes(
                payload(source.parent))),
            field="model.safetensors", says="does not fit the file"),
    Hostile(name="auto-map", build=_directory(_written("modeling.py", "open('canary', 'w')"),
                                              auto_map={"AutoModel": "modeling.Model"}),
            field="auto_map", says="bring their own code"),
    Hostile(name="auto-map-of-tokenizer",
            build=_directory(_written("tokenizer_config.json", '{"auto_map": {"a": "b.C"}}')),
            field="auto_map", says="bring their own code"),
    Hostile(name="link-in-directory", build=_directory(_link_in_directory),
            field="chat_template.jinja", says="symbolic link"),
)  # fmt: skip

TEMPLATES = (
    Hostile(name="template-time",
            build=_template("{% for a in range(99999) %}{% for b in range(99999) %}"
                            "{% endfor %}{% endfor %}"),
            field="chat_template.jinja", says="takes more than 4 s"),
    Hostile(name="template-memory", build=_template("{% set x = 'a' * 9999999999 %}{{ x }}"),
            field="chat_template.jinja", says="bytes of memory"),
    Hostile(name="template-output", build=_template("{% for a in range(99999) %}aaaa{% endfor %}"),
            field="chat_template.jinja", says="writes more than 262144 characters"),
    Hostile(name="template-power", build=_template("{{ 9 ** (9 ** 9) }}"),
            field="chat_template.jinja", says="takes more than 4 s"),
    Hostile(name="template-escape",
            build=_template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
            field="chat_template.jinja", says="reaches out of its sandbox"),
    Hostile(name="template-escape-in-config",
            build=_directory(_written("tokenizer_config.json", json.dumps({"chat_template": [
                {"name": "default", "template": "{{ messages }}"},
                {"name": "x", "template": "{{ self.__init__.__globals__ }}"}]}))),
            field="tokenizer_config.json", says="reaches out of its sandbox"),
    Hostile(name="template-broken", build=_template("{% for m in messages %}"),
            field="chat_template.jinja", says="is not valid"),
)  # fmt: skip

NUMBERS = (
    Hostile(name="wrong-hash", build=_file("model.gguf", llama_gguf()), sha256="0" * 64,
            field="sha256", says="is expected"),
    Hostile(name="huge-header",
            build=_directory(_written("model.safetensors", struct.pack("<Q", 1 << 62) + bytes(99))),
            field="model.safetensors", says="does not fit the file"),
    Hostile(name="long-header", build=_directory(_oversized("model.safetensors", 0)),
            field="model.safetensors", says="is empty"),
    Hostile(name="overlapping", build=_weights({_KEY: _NORM}),
            field="model.safetensors", says="overlaps"),
    Hostile(name="negative-offsets",
            build=_weights({_KEY: {**_NORM, "data_offsets": [-128, 0]}}),
            field="model.safetensors", says="overlaps"),
    Hostile(name="past-the-end",
            build=_weights({_KEY: {**_NORM, "data_offsets": [1 << 40, (1 << 40) + 128]}}),
            field="model.safetensors", says="past the end"),
    Hostile(name="absurd-shape", build=_weights({_KEY: {**_NORM, "shape": [1 << 62, 1 << 62]}}),
            field="model.safetensors", says="its shape needs"),
    Hostile(name="key-twice",
            build=_header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 1}'),
            field="model.safetensors", says="the key 'a' appears twice"),
    Hostile(name="nested-header", build=_header('{"a":' + "[" * 99_999),
            field="model.safetensors", says="not valid"),
    Hostile(name="nested-config", build=_directory(_written("config.json", "[" * 100_000)),
            field="config.json", says="not valid JSON"),
    Hostile(name="config-key-twice",
            build=_directory(_written("config.json", '{"hidden_size": 1, "hidden_size": 2}')),
            field="config.json", says="'hidden_size' appears twice"),
    Hostile(name="absurd-config", build=_directory(lambda _: None, hidden_size=1 << 40),
            field="hidden_size", says="from 1 to"),
    Hostile(name="absurd-layers", build=_directory(lambda _: None, num_hidden_layers=10**9),
            field="num_hidden_layers", says="from 1 to"),
    Hostile(name="large-tokenizer",
            build=_directory(_oversized("tokenizer.json", (1 << 27) + 1)),
            field="tokenizer.json", says="at most 134217728 are read"),
    Hostile(name="not-finite",
            build=_directory(_written("model.safetensors", safetensors({**weights(), _KEY: _NAN}))),
            field=_KEY, says="NaN or infinity"),
    Hostile(name="gguf-tensors", build=_file("hostile.gguf", gguf(n_tensors=1 << 62)),
            field="tensor_count", says="at most"),
    Hostile(name="gguf-entries", build=_file("hostile.gguf", gguf(n_entries=60_000)),
            field="kv_count", says="more than the file can hold"),
    Hostile(name="gguf-long-text",
            build=_file("hostile.gguf", gguf(
                entries=[string("a") + struct.pack("<IQ", 8, 1 << 60)])),
            field="a", says="at most"),
    Hostile(name="gguf-key-twice",
            build=_file("hostile.gguf", gguf(entries=[entry("a", 1), entry("a", 2)])),
            field="a", says="appears twice"),
    Hostile(name="gguf-past-the-end", build=_tensor_at(1 << 40),
            field="token_embd.weight", says="past the end"),
    Hostile(name="gguf-cut", build=_file("hostile.gguf", llama_gguf()[:-4096]),
            field="blk.0.ffn_down.weight", says="past the end"),
)  # fmt: skip

CORPUS = ARCHIVES + CODE + TEMPLATES + NUMBERS
