"""Reads a GGUF file, trusting no number in it: each is checked against the file before use.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Knows the container, no model.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from engine_service.convert.errors import ConversionError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
TENSOR_TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0")
DEFAULT_ALIGNMENT = 32
ALIGNMENTS = frozenset(1 << power for power in range(3, 17))
MAX_ENTRIES = 1 << 16
MAX_NAME_BYTES = 1 << 10
MAX_STRING_BYTES = 1 << 22
MAX_STRINGS_IN_ARRAY = 1 << 21
MAX_STRINGS = 1 << 22
MAX_NUMBERS_IN_ARRAY = 1 << 24
MAX_DIMENSIONS = 4
MAX_DIMENSION = 1 << 31

_SCALARS: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "|u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
# The fewest bytes an entry can take: a name of one byte, and then the smallest value or tensor.
_MIN_METADATA_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8

Numbers = npt.NDArray[np.generic]
Value = int | float | bool | str | list[str] | Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor as declared; ``shape`` in row-major order, ``offset`` from the file's start."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


class GgufFile:
    """A checked header over a mapped file. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise ConversionError("the GGUF file is empty", field="file") from error
        try:
            header = _Header(self._map)
            self.metadata: Mapping[str, Value] = header.metadata
            self.tensors: Mapping[str, GgufTensor] = header.tensors
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "GgufFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; arrays that were read stay valid."""
        self._map.close()

    def raw(self, name: str) -> bytes:
        """The stored bytes of a tensor."""
        tensor = self.tensors[name]
        return self._map[tensor.offset : tensor.offset + tensor.size_bytes]

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor as float32, which holds every supported type without loss."""
        tensor = self.tensors[name]
        stored = np.frombuffer(self.raw(name), dtype=np.uint8)
        by_row = stored.reshape(*tensor.shape[:-1], stored.size // math.prod(tensor.shape[:-1]))
        values: npt.NDArray[np.float32] = dequantize(by_row, tensor.kind)
        return values


class _Header:
    """One pass over the header; ``_take`` is the only way to move and never passes the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0
        self._n_strings = 0
        if self._take(4, field="magic") != MAGIC:
            raise ConversionError("not a GGUF file: the magic number is missing", field="magic")
        version = self._unsigned(4, field="version")
        if version not in VERSIONS:
            raise ConversionError(
                f"GGUF version {version} is not supported; versions 2 and 3 (little-endian) are",
                field="version",
            )
        n_tensors = self._count("tensor_count", limit=MAX_ENTRIES, min_bytes=_MIN_TENSOR_BYTES)
        n_entries = self._count("kv_count", limit=MAX_ENTRIES, min_bytes=_MIN_METADATA_BYTES)
        self.metadata: dict[str, Value] = {}
        for _ in range(n_entries):
            self._metadata_entry()
        self.tensors: dict[str, GgufTensor] = {}
        for _ in range(n_tensors):
            self._tensor_info()
        self._place_tensors()

    def _take(self, n_bytes: int, *, field: str) -> bytes:
        if n_bytes > len(self._data) - self._at:
            raise ConversionError(f"the file ends inside {field}", field=field)
        start, self._at = self._at, self._at + n_bytes
        return self._data[start : self._at]

    def _unsigned(self, n_bytes: int, *, field: str) -> int:
        return int.from_bytes(self._take(n_bytes, field=field), "little")

    def _count(self, field: str, *, limit: int, min_bytes: int) -> int:
        count = self._unsigned(8, field=field)
        if count > limit:
            raise ConversionError(f"{field} is {count}; at most {limit} is read", field=field)
        if count * min_bytes > len(self._data) - self._at:
            raise ConversionError(f"{field} is {count}: more than the file can hold", field=field)
        return count

    def _string(self, *, field: str, max_bytes: int = MAX_STRING_BYTES) -> str:
        n_bytes = self._count(field, limit=max_bytes, min_bytes=1)
        try:
            return self._take(n_bytes, field=field).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConversionError(f"{field} is not valid UTF-8", field=field) from error

    def _metadata_entry(self) -> None:
        key = self._string(field="metadata key", max_bytes=MAX_NAME_BYTES)
        if key in self.metadata:
            raise ConversionError(f"metadata key {key!r} appears twice", field=key)
        self.metadata[key] = self._value(self._unsigned(4, field=key), field=key)

    def _value(self, kind: int, *, field: str) -> Value:
        if kind == _STRING:
            return self._string(field=field)
        if kind == _ARRAY:
            return self._array(field=field)
        number = self._numbers(kind, 1, field=field)[0].item()
        return bool(number) if kind == _BOOL else number

    def _array(self, *, field: str) -> list[str] | Numbers:
        kind = self._unsigned(4, field=field)
        if kind == _STRING:
            n_strings = self._count(field, limit=MAX_STRINGS_IN_ARRAY, min_bytes=8)
            self._n_strings += n_strings
            if self._n_strings > MAX_STRINGS:
                raise ConversionError(
                    f"{field}: the arrays hold more than {MAX_STRINGS} texts", field=field
                )
            return [self._string(field=field) for _ in range(n_strings)]
        n_numbers = self._count(field, limit=MAX_NUMBERS_IN_ARRAY, min_bytes=1)
        return self._numbers(kind, n_numbers, field=field)

    def _numbers(self, kind: int, count: int, *, field: str) -> Numbers:
        if kind not in _SCALARS:
            raise ConversionError(f"{field} has unsupported value type {kind}", field=field)
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize, field=field), dtype=dtype)

    def _tensor_info(self) -> None:
        name = self._string(field="tensor name", max_bytes=MAX_NAME_BYTES)
        if name in self.tensors:
            raise ConversionError(f"tensor {name!r} appears twice", field=name)
        n_dims = self._unsigned(4, field=name)
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            raise ConversionError(f"tensor {name!r} has {n_dims} dimensions", field=name)
        dims = struct.unpack(f"<{n_dims}Q", self._take(8 * n_dims, field=name))
        if not all(1 <= dim <= MAX_DIMENSION for dim in dims):
            raise ConversionError(f"tensor {name!r} has dimensions {dims}", field=name)
        kind = _tensor_type(self._unsigned(4, field=name), name=name)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if dims[0] % block:
            raise ConversionError(
                f"tensor {name!r} has rows of {dims[0]}, no multiple of {kind.name}'s {block}",
                field=name,
            )
        self.tensors[name] = GgufTensor(
            name=name,
            kind=kind,
            shape=tuple(reversed(dims)),
            offset=self._unsigned(8, field=name),
            size_bytes=math.prod(dims) // block * block_bytes,
        )

    def _place_tensors(self) -> None:
        """Make offsets absolute, each tensor inside the file and none over another."""
        alignment = self._alignment()
        data_start = -(-self._at // alignment) * alignment
        end_of_previous = data_start
        for tensor in sorted(self.tensors.values(), key=lambda tensor: tensor.offset):
            start = data_start + tensor.offset
            if tensor.offset % alignment:
                raise ConversionError(f"tensor {tensor.name!r} is not aligned", field=tensor.name)
            if start < end_of_previous:
                raise ConversionError(f"tensor {tensor.name!r} overlaps another", field=tensor.name)
            end_of_previous = start + tensor.size_bytes
            if end_of_previous > len(self._data):
                raise ConversionError(
                    f"tensor {tensor.name!r} reaches past the end of the file", field=tensor.name
                )
            self.tensors[tensor.name] = GgufTensor(
                name=tensor.name,
                kind=tensor.kind,
                shape=tensor.shape,
                offset=start,
                size_bytes=tensor.size_bytes,
            )

    def _alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if isinstance(alignment, int) and alignment in ALIGNMENTS:
            return alignment
        raise ConversionError(
            f"general.alignment is {alignment!r}, no power of two from 8 to {max(ALIGNMENTS)}",
            field="general.alignment",
        )


def _tensor_type(number: int, *, name: str) -> GGMLQuantizationType:
    try:
        kind = GGMLQuantizationType(number)
    except ValueError as error:
        raise ConversionError(f"tensor {name!r} has unknown type {number}", field=name) from error
    if kind.name not in TENSOR_TYPES:
        raise ConversionError(
            f"tensor {name!r} has type {kind.name}; supported are {', '.join(TENSOR_TYPES)}",
            field=name,
        )
    return kind
