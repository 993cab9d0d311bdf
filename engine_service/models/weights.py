"""Reads a model's tensors out of its safetensors files, each by name, shape and type, and all."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine_service.errors import ModelError

_STORED_DTYPES: Final = ("F32", "BF16", "F16")


class WeightReader:
    """Memory-maps the files; what ``take`` returns is a copy in the engine's dtype."""

    def __init__(self, paths: Iterable[Path], *, dtype: torch.dtype) -> None:
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

    def take(self, name: str, *, shape: tuple[int, ...]) -> Tensor:
        """Return one tensor; raises ModelError unless it is there with this shape."""
        return self.take_stacked((name, shape))

    def take_stacked(self, *parts: tuple[str, tuple[int, ...]]) -> Tensor:
        """Return several tensors as one, stacked along their first dimension."""
        first_shape = parts[0][1]
        n_rows = sum(shape[0] for _, shape in parts)
        stacked = torch.empty((n_rows, *first_shape[1:]), dtype=self._dtype)
        start = 0
        for name, shape in parts:
            stacked[start : start + shape[0]] = self._stored(name, shape=shape)
            start += shape[0]
        return stacked

    def finish(self, *, ignored: frozenset[str]) -> None:
        """Check that every tensor was taken, those aside that the model does not use."""
        unknown = sorted(self._untaken - ignored)
        if unknown:
            raise ModelError(f"the model has {len(unknown)} unknown tensors, such as {unknown[0]}")

    def _stored(self, name: str, *, shape: tuple[int, ...]) -> Tensor:
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
        tensor: Tensor = file.get_tensor(name)
        return tensor
