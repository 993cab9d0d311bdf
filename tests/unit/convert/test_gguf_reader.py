"""The GGUF reader: exact values, and no number of the file believed."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_service.convert.errors import ConversionError
from engine_service.convert.gguf_reader import GgufFile
from tests.unit.convert.builders import (
    ARRAY,
    BF16,
    F16,
    F32,
    INT32,
    Q4_0,
    Q4_1,
    Q6_K,
    Q8_0,
    STRING,
    Tensor,
    entry,
    gguf,
    llama_gguf,
    string,
)

ONES = np.ones(32, dtype="<f4").tobytes()
HUGE = 1 << 62


def read(path: Path, data: bytes) -> GgufFile:
    file = path / "model.gguf"
    file.write_bytes(data)
    return GgufFile(file)


def refusal(path: Path, data: bytes) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        read(path, data)
    return caught.value


def test_metadata_of_every_kind_is_read(tmp_path: Path) -> None:
    file = read(
        tmp_path,
        gguf(
            metadata={
                "a": 7,
                "b": 0.5,
                "c": True,
                "d": "Grüße",
                "e": ["x", "", "yz"],
                "f": [1, -2, 3],
            },
            entries=[string("g") + struct.pack("<IQ", 10, 1 << 40)],
        ),
    )
    values = dict(file.metadata)
    assert values.pop("f").tolist() == [1, -2, 3]  # type: ignore[union-attr]
    assert values == {
        "a": 7,
        "b": 0.5,
        "c": True,
        "d": "Grüße",
        "e": ["x", "", "yz"],
        "g": 1 << 40,
    }


def test_each_type_gives_the_exact_values(tmp_path: Path) -> None:
    half = np.float16(0.5).tobytes()
    nibbles = bytes(range(16))  # low nibbles 0..15 are weights 0..15, high nibbles 0 the rest
    values = np.linspace(-2, 2, 32, dtype="<f4")
    file = read(
        tmp_path,
        gguf(
            tensors=[
                Tensor("f32", (2, 16), F32, values.tobytes()),
                Tensor("f16", (32,), F16, values.astype("<f2").tobytes()),
                Tensor("bf16", (4,), BF16, struct.pack("<4H", 0x3F80, 0xC000, 0x0000, 0x3E80)),
                Tensor("q4_0", (1, 32), Q4_0, half + nibbles),
                Tensor("q4_1", (1, 32), Q4_1, half + np.float16(-1).tobytes() + nibbles),
                Tensor("q8_0", (32,), Q8_0, half + bytes(range(256 - 16, 256)) + bytes(range(16))),
            ]
        ),
    )
    ramp = np.concatenate([np.arange(16), np.zeros(16)])
    assert np.array_equal(file.read("f32"), values.reshape(2, 16))
    assert np.array_equal(file.read("f16"), values.astype(np.float16).astype(np.float32))
    assert file.read("bf16").tolist() == [1.0, -2.0, 0.0, 0.25]
    assert np.array_equal(file.read("q4_0"), [(ramp - 8) * 0.5])
    assert np.array_equal(file.read("q4_1"), [ramp * 0.5 - 1])
    assert np.array_equal(file.read("q8_0"), np.arange(-16, 16) * 0.5)
    assert all(file.read(name).dtype == np.float32 for name in file.tensors)


@pytest.mark.parametrize(
    ("data", "field", "says"),
    [
        (b"", "file", "empty"),
        (b"GGML" + bytes(40), "magic", "not a GGUF file"),
        (gguf(version=1), "version", "GGUF version 1 is not supported"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "version", "is not supported"),
        (gguf(n_tensors=HUGE), "tensor_count", f"is {HUGE}"),
        (gguf(n_tensors=3), "tensor_count", "more than the file can hold"),
        (gguf(n_entries=HUGE), "kv_count", f"is {HUGE}"),
        (gguf(n_entries=5), "kv_count", "more than the file can hold"),
        (gguf(metadata={"a": 1}, entries=[entry("a", 2)]), "a", "appears twice"),
        (gguf(entries=[struct.pack("<Q", HUGE) + bytes(99)]), "metadata key", f"is {HUGE}"),
        (gguf(entries=[string(b"\xff\xfe") + bytes(99)]), "metadata key", "not valid UTF-8"),
        (gguf(entries=[string("k") + struct.pack("<I", 13) + bytes(9)]), "k", "value type 13"),
        (
            gguf(entries=[string("k") + struct.pack("<IQ", STRING, HUGE) + bytes(9)]),
            "k",
            f"k is {HUGE}",
        ),
        (
            gguf(entries=[string("k") + struct.pack("<IIQ", ARRAY, INT32, HUGE)]),
            "k",
            f"k is {HUGE}",
        ),
        (
            gguf(entries=[string("k") + struct.pack("<IIQ", ARRAY, STRING, 1 << 20)]),
            "k",
            "more than the file can hold",
        ),
        (
            gguf(entries=[string("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1) + bytes(99)]),
            "k",
            "value type 9",
        ),
        (gguf(metadata={"general.alignment": 0}), "general.alignment", "is 0"),
        (gguf(metadata={"general.alignment": 24}), "general.alignment", "is 24"),
        (gguf(metadata={"general.alignment": "32"}), "general.alignment", "is '32'"),
        (gguf(tensors=[Tensor("t", (32,), F32, ONES)] * 2), "t", "appears twice"),
        (gguf(tensors=[Tensor("t", (1,) * 5, F32, ONES)]), "t", "5 dimensions"),
        (gguf(tensors=[Tensor("t", (), F32, ONES)]), "t", "0 dimensions"),
        (gguf(tensors=[Tensor("t", (0, 4), F32, ONES)]), "t", "has dimensions"),
        (gguf(tensors=[Tensor("t", (1 << 63, 2), F32, ONES)]), "t", "has dimensions"),
        (gguf(tensors=[Tensor("t", (1 << 31,) * 4, F32, ONES)]), "t", "past the end"),
        (gguf(tensors=[Tensor("t", (32,), Q6_K, ONES)]), "t", "Q6_K; supported are F32"),
        (gguf(tensors=[Tensor("t", (32,), 99, ONES)]), "t", "unknown type 99"),
        (gguf(tensors=[Tensor("t", (16,), Q8_0, ONES)]), "t", "no multiple of Q8_0's 32"),
        (gguf(tensors=[Tensor("t", (32,), F32, ONES, offset=4)]), "t", "not aligned"),
        (gguf(tensors=[Tensor("t", (32,), F32, ONES, offset=HUGE)]), "t", "past the end"),
        (gguf(tensors=[Tensor("t", (64,), F32, ONES)]), "t", "past the end"),
        (
            gguf(tensors=[Tensor("t", (32,), F32, ONES), Tensor("u", (32,), F32, b"", offset=96)]),
            "u",
            "overlaps",
        ),
    ],
)
def test_a_lie_is_refused_by_name(tmp_path: Path, data: bytes, field: str, says: str) -> None:
    error = refusal(tmp_path, data)
    assert error.field == field
    assert says in str(error)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = gguf(metadata={"a": 1, "b": ["x", "y"]}, tensors=[Tensor("t", (32,), F32, ONES)])
    for length in range(len(whole)):
        refusal(tmp_path, whole[:length])
    assert list(read(tmp_path, whole).tensors) == ["t"]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_garbled_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    garbled = bytearray(_SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(garbled) - 1))
        garbled[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path_factory.getbasetemp()
    try:
        with read(path, bytes(garbled)) as file:
            for name in file.tensors:
                file.read(name)
    except ConversionError:
        pass


_SMALL = gguf(
    metadata={"a": 1, "b": ["x", "y"], "c": [1, 2], "d": "text", "e": 0.5},
    tensors=[Tensor("t", (32,), F32, ONES), Tensor("u", (1, 32), Q8_0, bytes(34))],
)


def test_closing_leaves_values_that_were_read_alone(tmp_path: Path) -> None:
    with read(tmp_path, llama_gguf()) as file:
        values = file.read("output_norm.weight")
    assert values.shape == (32,)
    assert np.isfinite(values).all()
