"""The safetensors reader and writer: exact bytes, and no number of the file believed."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from engine_service.convert.errors import ConversionError
from engine_service.convert.safetensors_file import SafetensorsFile, write_safetensors
from tests.unit.convert.builders import safetensors

TENSORS = {
    "a": np.arange(6, dtype="<f4").reshape(2, 3),
    "b": np.arange(4, dtype="<f2"),
    "c": np.arange(2, dtype="<u2"),
}


def read(path: Path, data: bytes) -> SafetensorsFile:
    file = path / "model.safetensors"
    file.write_bytes(data)
    return SafetensorsFile(file)


def test_tensors_are_read(tmp_path: Path) -> None:
    file = read(tmp_path, safetensors(TENSORS))
    assert {name: (t.dtype, t.shape) for name, t in file.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("F16", (4,)),
        "c": ("BF16", (2,)),
    }
    assert {name: file.raw(name) for name in TENSORS} == {
        name: array.tobytes() for name, array in TENSORS.items()
    }


def _entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (bytes(7), "does not fit"),
        (struct.pack("<Q", 1 << 62) + bytes(99), "a header of 4611686018427387904 bytes"),
        (struct.pack("<Q", 100) + bytes(99), "a header of 100 bytes"),
        (struct.pack("<Q", 2) + b"[]", "not valid"),
        (struct.pack("<Q", 4) + b"{'a}", "not valid"),
        (struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995, "not valid"),
        (safetensors(TENSORS, header=_entry(dtype="I64")), "type I64; supported are F32"),
        (safetensors(TENSORS, header=_entry(shape=[2, 4])), "takes 24 bytes; its shape needs 32"),
        (safetensors(TENSORS, header=_entry(shape=[1 << 62, 1 << 62])), "its shape needs"),
        (safetensors(TENSORS, header=_entry(shape=[-2, -3])), "has shape"),
        (safetensors(TENSORS, header=_entry(shape=[0])), "has shape"),
        (safetensors(TENSORS, header=_entry(shape=[1] * 9)), "has shape"),
        (safetensors(TENSORS, header=_entry(data_offsets=[8, 32])), "overlaps"),
        (safetensors(TENSORS, header=_entry(data_offsets=[-24, 0])), "overlaps"),
        (safetensors(TENSORS, header=_entry(data_offsets=[24, 0])), "takes -24 bytes"),
        (safetensors(TENSORS, header=_entry(data_offsets=[1000, 1024])), "past the end"),
        (safetensors(TENSORS, header=_entry(data_offsets=[0])), "not valid"),
        (safetensors(TENSORS, header=_entry(more=1)), "not valid"),
        (safetensors(TENSORS)[:-1], "past the end"),
    ],
)
def test_a_lie_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(ConversionError) as caught:
        read(tmp_path, data)
    assert caught.value.field == "model.safetensors"
    assert says in str(caught.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = safetensors(TENSORS)
    for length in range(len(whole)):
        with pytest.raises(ConversionError):
            read(tmp_path, whole[:length])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_garbled_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    garbled = bytearray(safetensors(TENSORS))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(garbled) - 1))
        garbled[at : at + 4] = data.draw(st.binary(min_size=1, max_size=8))
    try:
        file = read(tmp_path_factory.getbasetemp(), bytes(garbled))
    except ConversionError:
        return
    assert all(len(file.raw(name)) == t.size_bytes for name, t in file.tensors.items())


def test_what_is_written_is_read_by_the_library(tmp_path: Path) -> None:
    values = {"x": np.arange(6, dtype="<f4").reshape(2, 3), "y": np.ones(5, dtype="<f4")}
    path = tmp_path / "out.safetensors"
    with path.open("wb") as file:
        write_safetensors(
            file,
            tensors={name: array.shape for name, array in values.items()},
            dtype="F32",
            read=lambda name: values[name].tobytes(),
        )
    loaded = load_file(path)
    assert set(loaded) == {"x", "y"}
    assert all(np.array_equal(loaded[name], values[name]) for name in values)
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
