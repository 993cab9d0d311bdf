"""Writes a checked source as a model directory: all of it, or nothing that looks complete."""

import fcntl
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine_service.config import ModelConfig
from engine_service.convert.checkpoint import BFLOAT16, Checkpoint, RawTensor
from engine_service.convert.errors import ConversionError
from engine_service.convert.files import json_bytes
from engine_service.convert.safetensors_file import write_safetensors
from engine_service.convert.sources import identify_source, open_source
from engine_service.convert.templates import check_templates
from engine_service.encoder_config import EncoderConfig, is_encoder
from engine_service.errors import ModelError
from engine_service.models.manifest import Manifest, ManifestSource, ModelFacts, write_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a stage is, in bytes when unpacking and in tensors when converting."""

    stage: str
    done: int
    total: int


Report = Callable[[ManifestSource | Progress], None]


def convert(
    source: Path, output: Path, *, report: Report, expected_sha256: str | None = None
) -> Manifest:
    """Convert ``source`` into the directory ``output``, which must not exist yet."""
    if output.exists() or output.is_symlink():
        raise ConversionError(f"{output} already exists", field="output")
    identity = identify_source(source)
    if expected_sha256 is not None and identity.sha256 != expected_sha256:
        raise ConversionError(
            f"{identity.name} has the SHA-256 {identity.sha256}; {expected_sha256} is expected",
            field="sha256",
        )
    report(identity)
    output.parent.mkdir(parents=True, exist_ok=True)
    with _work_directory(output) as work, ExitStack() as resources:
        scratch, model = work / "scratch", work / "model"
        scratch.mkdir()
        model.mkdir()
        checkpoint = open_source(
            source,
            scratch=scratch,
            resources=resources,
            on_bytes=lambda done, total: report(Progress(stage="unpack", done=done, total=total)),
        )
        check_templates(checkpoint.files)
        _check_room(work, checkpoint=checkpoint)
        for name, content in checkpoint.files.items():
            (model / name).write_bytes(content)
        (model / "config.json").write_bytes(json_bytes(checkpoint.config))
        _check_config(model)
        _write_weights(model / "model.safetensors", checkpoint=checkpoint, report=report)
        manifest = write_manifest(model, _facts(checkpoint, source=identity))
        for path in [*model.iterdir(), model]:
            _sync(path)
        model.rename(output)
        _sync(output.parent)
    return manifest


def _check_room(work: Path, *, checkpoint: Checkpoint) -> None:
    n_parameters = sum(math.prod(shape) for shape in checkpoint.shape.tensors().values())
    n_bytes = n_parameters * (2 if checkpoint.dtype == BFLOAT16 else 4)
    free = shutil.disk_usage(work).free
    if n_bytes > free:
        raise ConversionError(
            f"the model takes {n_bytes} bytes; the disk has {free} free", field="source"
        )


def _check_config(model: Path) -> None:
    """The engine's own reading decides whether it could run the model."""
    try:
        if is_encoder(model):
            EncoderConfig.from_dir(model)
        else:
            ModelConfig.from_dir(model)
    except ModelError as error:
        message = str(error).removeprefix(f"{model}/")
        raise ConversionError(message, field="config.json") from error


def _facts(checkpoint: Checkpoint, *, source: ManifestSource) -> ModelFacts:
    return ModelFacts(
        architecture=checkpoint.shape.architecture,
        # Weights stored; a tied head counts once.
        n_parameters=sum(math.prod(shape) for shape in checkpoint.shape.tensors().values()),
        context_length=checkpoint.shape.context_length,
        vocab_size=checkpoint.shape.vocab_size,
        dtype=checkpoint.dtype,
        license=checkpoint.license,
        source=source,
    )


def _write_weights(path: Path, *, checkpoint: Checkpoint, report: Report) -> None:
    tensors = checkpoint.shape.tensors()
    order = {name: index for index, name in enumerate(tensors)}

    def read(name: str) -> memoryview:
        values = np.ascontiguousarray(checkpoint.read(name))
        _refuse_not_finite(values, name=name)
        report(Progress(stage="convert", done=order[name] + 1, total=len(tensors)))
        return values.data.cast("B")

    with path.open("xb") as file:
        dtype = "BF16" if checkpoint.dtype == BFLOAT16 else "F32"
        write_safetensors(file, tensors=tensors, dtype=dtype, read=read)


def _refuse_not_finite(values: RawTensor, *, name: str) -> None:
    if values.dtype == np.uint16:
        finite = bool(np.all((values & 0x7F80) != 0x7F80))
    else:
        finite = bool(np.all(np.isfinite(values)))
    if not finite:
        raise ConversionError(f"tensor {name!r} holds NaN or infinity", field=name)


@contextmanager
def _work_directory(output: Path) -> Iterator[Path]:
    """A locked directory beside ``output``; what an interrupted import left there is removed."""
    work = output.parent / f".{output.name}.partial"
    work.mkdir(exist_ok=True)
    lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held the lock may have removed the directory that we opened.
            ours = os.path.samestat(os.fstat(lock), work.stat())
        except OSError:
            ours = False
        if not ours:
            raise ConversionError(f"another import is writing {output}", field="output")
        for left_over in work.iterdir():
            shutil.rmtree(left_over)
        try:
            yield work
        finally:
            try:
                shutil.rmtree(work, ignore_errors=True)
            except BaseException:  # told to go while going already
                shutil.rmtree(work, ignore_errors=True)
                raise
    finally:
        os.close(lock)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
