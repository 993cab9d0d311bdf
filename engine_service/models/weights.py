"""Reads a model's tensors out of its safetensors files, each by name, shape and type, and all; or
of each what one of several processes computes with."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine_service.config import QuantizationName
from engine_service.errors import ModelError
from engine_service.kernels.quantization import Matrix, quantize_weight
from engine_service.models.shard import WHOLE, Shard

_STORED_DTYPES: Final = ("F32", "BF16", "F16")
_ALL: Final = slice(None)
_NO_ROOM: Final = "the weights do not fit the device's memory"


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor, the shape that it must have, and which of its rows are wanted."""

    name: str
    shape: tuple[int, ...]
    rows: slice = field(default_factory=lambda: _ALL)

    @property
    def n_rows(self) -> int:
        return len(range(*self.rows.indices(self.shape[0])))


class WeightReader:
    """Memory-maps the files; what ``take`` returns is a copy in the engine's dtype on ``device``,
    the processor's where it is None.

    shard: the part of the model that is to be read. Whoever reads asks for the rows and columns of
    it: what of a tensor belongs to which rank the reader does not know.
    quantization: of what is given to ``matrix``.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        *,
        dtype: torch.dtype,
        shard: Shard = WHOLE,
        device: torch.device | None = None,
        quantization: QuantizationName = "none",
    ) -> None:
        self.shard = shard
        self._quantization = quantization
        self._device = device
        self._dtype = dtype
        self._files = ExitStack()
        self._file_of: dict[str, Any] = {}
        for path in paths:
            try:
                file = self._files.enter_context(safe_open(path, framework="pt"))
                names = list(file.keys())
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path} is not a safetensors file: {error}") from error
            for name in names:
                if name in self._file_of:
                    raise ModelError(f"{path} holds {name} again")
                self._file_of[name] = file
        self._untaken = set(self._file_of)

    def __enter__(self) -> "WeightReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.close()

    def take(self, name: str, *, shape: tuple[int, ...], columns: slice = _ALL) -> Tensor:
        """Return one tensor, or ``columns`` of a matrix; raises ModelError unless it is there with
        this shape."""
        stored = self._stored(Part(name, shape), columns=columns)
        return self._empty(*stored.shape).copy_(stored)

    def take_stacked(self, *parts: Part) -> Tensor:
        """Return several tensors as one, stacked along their first dimension."""
        n_rows = sum(part.n_rows for part in parts)
        stacked = self._empty(n_rows, *parts[0].shape[1:])
        start = 0
        for part in parts:
            stacked[start : start + part.n_rows] = self._stored(part)
            start += part.n_rows
        return stacked

    def matrix(self, weight: Tensor) -> Matrix:
        """Return a weight of a product, which was taken, as the engine is to hold it. Of one in
        eight bits nothing else is left once the caller lets go of ``weight``."""
        if self._quantization == "none":
            return weight
        try:
            return quantize_weight(weight, kind=self._quantization)
        except torch.OutOfMemoryError as error:
            raise ModelError(_NO_ROOM) from error

    def finish(self, *, ignored: frozenset[str]) -> None:
        """Check that every tensor was taken, those aside that the model does not use."""
        unknown = sorted(self._untaken - ignored)
        if unknown:
            raise ModelError(f"the model has {len(unknown)} unknown tensors, such as {unknown[0]}")

    def _empty(self, *shape: int) -> Tensor:
        try:
            return torch.empty(shape, dtype=self._dtype, device=self._device)
        except torch.OutOfMemoryError as error:
            raise ModelError(_NO_ROOM) from error

    def _stored(self, part: Part, *, columns: slice = _ALL) -> Tensor:
        name, shape = part.name, part.shape
        file = self._file_of.get(name)
        if file is None:
            raise ModelError(f"the model lacks the tensor {name}")
        description = file.get_slice(name)
        stored_shape, stored_dtype = tuple(description.get_shape()), description.get_dtype()
        if stored_shape != shape:
            raise ModelError(f"{name} has the shape {stored_shape}, the configuration says {shape}")
        if stored_dtype not in _STORED_DTYPES:
            raise ModelError(f"{name} is of type {stored_dtype}, not {', '.join(_STORED_DTYPES)}")
        self._untaken.discard(name)
        if part.rows == _ALL and columns == _ALL:
            tensor: Tensor = file.get_tensor(name)
        elif columns == _ALL:
            tensor = description[part.rows]
        else:
            tensor = description[part.rows, columns]
        return tensor
