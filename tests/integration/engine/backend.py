"""A native backend for tests, run until nothing is left to do; and models altered for it."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from engine_service.backends.base import EngineRequest, SequenceOutput
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.models.manifest import read_manifest, write_manifest

Answers = dict[tuple[int, int], list[SequenceOutput]]


def make_backend(model_dir: Path, **settings: Any) -> NativeBackend:
    return NativeBackend(
        EngineConfig(
            model_dir=model_dir, **{"dtype": "float32", "kv_cache_tokens": 512, **settings}
        )
    )


def run(backend: NativeBackend, *requests: EngineRequest) -> dict[int, list[SequenceOutput]]:
    """Return the outputs of requests with one answer each, by key; nothing runs or waits after."""
    outputs: dict[int, list[SequenceOutput]] = defaultdict(list)
    for (key, _), found in run_answers(backend, *requests).items():
        outputs[key] += found
    return outputs


def run_answers(backend: NativeBackend, *requests: EngineRequest) -> Answers:
    """Return the same by key and answer."""
    for request in requests:
        backend.add(request)
    outputs: Answers = defaultdict(list)
    while backend.has_work():
        for output in backend.step():
            outputs[output.key, output.choice].append(output)
    stats = backend.stats()
    assert (stats.n_running, stats.n_waiting) == (0, 0)
    assert stats.n_blocks_free == stats.n_blocks_total
    return outputs


def tokens(outputs: Iterable[SequenceOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def altered(
    model_dir: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> Path:
    """Copy a model with other tensors and a manifest that fits them."""
    copy = tmp_path / "altered"
    copy.mkdir()
    for path in model_dir.iterdir():
        if path.suffix != ".safetensors" and path.name != "manifest.json":
            (copy / path.name).write_bytes(path.read_bytes())
    tensors = load_file(model_dir / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors")
    write_manifest(copy, read_manifest(model_dir))
    return copy


def with_noise(model_dir: Path, tmp_path: Path) -> Path:
    """Copy a model with weights that are others by a little: often, not always, it says the
    same."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(1)
        for values in tensors.values():
            values += torch.randn(values.shape, generator=generator) * 0.01

    return altered(model_dir, tmp_path, change)
