"""Reads safetensors with every declared number checked against the file, and writes them streamed.

Format: https://github.com/huggingface/safetensors#format.
"""

import json
import math
import mmap
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from engine_service.convert.errors import ConversionError
from engine_service.convert.files import unique_pairs

# The format allows 100 MB; that of a model of a hundred thousand tensors has 15.
MAX_HEADER_BYTES = 32 << 20
MAX_RANK = 8
ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor of a checked file; ``offset`` counts from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


class SafetensorsFile:
    """A checked header over a mapped file. Tensors of a name that ``left_out`` fits are not there,
    whatever their type. Use as a context manager."""

    def __init__(self, path: Path, *, left_out: re.Pattern[str] | None = None) -> None:
        self._field = path.name
        self._left_out = left_out
        with path.open("rb") as file:
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise ConversionError(f"{path.name} is empty", field=path.name) from error
        try:
            self.tensors: Mapping[str, StoredTensor] = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmap the file; bytes that were read stay valid."""
        self._map.close()

    def raw(self, name: str) -> bytes:
        """The stored bytes of a tensor."""
        tensor = self.tensors[name]
        return self._map[tensor.offset : tensor.offset + tensor.size_bytes]

    def _is_left_out(self, name: str) -> bool:
        return name == "__metadata__" or bool(self._left_out and self._left_out.fullmatch(name))

    def _refuse(self, why: str) -> ConversionError:
        return ConversionError(f"{self._field}: {why}", field=self._field)

    def _read_header(self) -> dict[str, StoredTensor]:
        n_bytes = int.from_bytes(self._map[:8], "little")
        if len(self._map) < 8 or n_bytes > min(MAX_HEADER_BYTES, len(self._map) - 8):
            raise self._refuse(f"a header of {n_bytes} bytes does not fit the file")
        try:
            header = json.loads(self._map[8 : 8 + n_bytes], object_pairs_hook=unique_pairs)
            entries = msgspec.convert(
                {name: entry for name, entry in header.items() if not self._is_left_out(name)},
                type=dict[str, _Entry],
            )
        except (msgspec.MsgspecError, RecursionError, ValueError, AttributeError) as error:
            raise self._refuse(f"the header is not valid: {error}") from error
        return self._place(entries, data_start=8 + n_bytes)

    def _place(self, entries: Mapping[str, _Entry], *, data_start: int) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        previous_end = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
            start, end = entry.data_offsets
            if entry.dtype not in ELEMENT_BYTES:
                raise self._refuse(
                    f"tensor {name!r} has type {entry.dtype}; "
                    f"supported are {', '.join(ELEMENT_BYTES)}"
                )
            if len(entry.shape) > MAX_RANK or not all(dim >= 1 for dim in entry.shape):
                raise self._refuse(f"tensor {name!r} has shape {entry.shape}")
            size_bytes = math.prod(entry.shape) * ELEMENT_BYTES[entry.dtype]
            if end - start != size_bytes:
                raise self._refuse(
                    f"tensor {name!r} takes {end - start} bytes; its shape needs {size_bytes}"
                )
            if start < previous_end:
                raise self._refuse(f"tensor {name!r} overlaps another")
            if data_start + end > len(self._map):
                raise self._refuse(f"tensor {name!r} reaches past the end of the file")
            previous_end = end
            tensors[name] = StoredTensor(
                dtype=entry.dtype,
                shape=tuple(entry.shape),
                offset=data_start + start,
                size_bytes=size_bytes,
            )
        return tensors


def write_safetensors(
    file: BinaryIO,
    *,
    tensors: Mapping[str, tuple[int, ...]],
    dtype: str,
    read: Callable[[str], bytes | memoryview],
) -> None:
    """Write ``tensors`` one after the other; only one is in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        end = at + math.prod(shape) * ELEMENT_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for name in tensors:
        file.write(read(name))
