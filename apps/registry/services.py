"""Writes of the registry room."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Max

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.registry.artifacts import is_artifact_there, remote_storage
from apps.registry.exceptions import ModelImportError, ModelImportRunning
from apps.registry.import_jobs import (
    import_job_cancel,
    import_job_create,
    import_upload_append,
    import_upload_begin,
)
from apps.registry.importing import run_conversion
from apps.registry.models import ModelVersion, RegisteredModel
from apps.registry.selectors import TOKENIZER, chat_template_in, model_card_in
from apps.registry.shapes import shape_read
from apps.registry.storing import folder_drop, folder_keep, folder_upload
from apps.registry.types import AlreadyImported, ConversionDone, ImportEvent, SourceIdentified
from apps.registry.verifications import (
    verification_ask,
    verification_cancel,
    verification_claim,
    verification_end,
    verification_release,
    verification_renew,
    verifications_wake,
)
from apps.registry.versions import (
    deployable_check,
    model_version_delete,
    model_version_describe,
    model_version_stage_move,
)
from apps.registry.vocabularies import vocabulary_sha256

__all__ = [
    "deployable_check",
    "import_job_cancel",
    "import_job_create",
    "import_lock",
    "import_model",
    "import_upload_append",
    "import_upload_begin",
    "model_version_delete",
    "model_version_describe",
    "model_version_stage_move",
    "registered_model_describe",
    "verification_ask",
    "verification_cancel",
    "verification_claim",
    "verification_end",
    "verification_release",
    "verification_renew",
    "verifications_wake",
]

_MANIFEST_FACTS = ("architecture", "n_parameters", "context_length", "vocab_size", "dtype")


def import_model(
    *,
    name: str,
    source_path: Path,
    actor: Actor,
    on_event: Callable[[ImportEvent], None] = lambda event: None,
    on_wait: Callable[[], None] = lambda: None,
    expected_sha256: str = "",
) -> ModelVersion:
    """Convert an artifact into the models directory and register it as a new version.

    The same artifact again gives the version that there is, after an ``AlreadyImported`` event.
    ``on_event``, and ``on_wait``, which is called while there is nothing to tell, may raise to
    cancel: nothing is left then. expected_sha256: what the source must have, if it is known.

    Raises:
        ModelImportError: the artifact is refused.
        ModelImportRunning: another process imports a version of the same model.
        StorageAway: the storage that it goes to does not answer.
        ValidationError: ``name`` is no name for a model.
    """
    model = RegisteredModel.objects.filter(name=name).first() or RegisteredModel(name=name)
    model.full_clean()
    directory = Path(settings.MODELS_DIR) / name
    with import_lock(directory), ExitStack() as undo:
        number = _next_version(name)
        path = directory / str(number)
        # Files of an import that was cut off before the database knew of it.
        shutil.rmtree(path, ignore_errors=True)
        undo.callback(shutil.rmtree, path, ignore_errors=True)
        converted = _convert(
            name=name,
            source_path=source_path,
            path=path,
            on_event=on_event,
            on_wait=on_wait,
            expected_sha256=expected_sha256,
        )
        if isinstance(converted, ModelVersion):
            on_event(AlreadyImported(version=converted.version))
            return converted
        version = _version(path, *converted, model=model, number=number)
        if remote_storage() is None:
            _register(version, actor=actor)
            undo.pop_all()
        else:  # what is on this disk was for sending only
            version.path = folder_upload(
                path, name=name, number=number, done=converted[1], on_event=on_event
            )
            undo.callback(folder_drop, version.path)
            _register_among_others(version, actor=actor)
        return version


def _register_among_others(version: ModelVersion, *, actor: Actor) -> None:
    """Where several machines import, the lock of one keeps the others from nothing."""
    try:
        _register(version, actor=actor)
    except (ValidationError, IntegrityError):
        others = ModelVersion.objects.filter(model__name=version.model.name)
        if others.filter(version=version.version).exists():
            raise ModelImportRunning from None
        raise


def _version(
    path: Path,
    source: SourceIdentified,
    done: ConversionDone,
    *,
    model: RegisteredModel,
    number: int,
) -> ModelVersion:
    shape = shape_read(path / "config.json")
    return ModelVersion(
        model=model,
        version=number,
        source=source.name[:300],
        source_sha256=source.sha256,
        path=str(path.relative_to(settings.MODELS_DIR)),
        license=done.manifest["license"][:120],
        model_card=model_card_in(path),
        shape=None if shape is None else asdict(shape),
        chat_template=chat_template_in(path),
        vocabulary_sha256=vocabulary_sha256(path / TOKENIZER),
        size_bytes=done.size_bytes,
        manifest=dict(done.manifest),
        manifest_sha256=done.manifest_sha256,
        **{fact: done.manifest[fact] for fact in _MANIFEST_FACTS},
    )


def _convert(
    *,
    name: str,
    source_path: Path,
    path: Path,
    on_event: Callable[[ImportEvent], None],
    on_wait: Callable[[], None],
    expected_sha256: str,
) -> tuple[SourceIdentified, ConversionDone] | ModelVersion:
    """Run the converter; stop it as soon as it turns out that the artifact is there already."""
    source: SourceIdentified | None = None
    done: ConversionDone | None = None
    events = run_conversion(
        source=source_path,
        output=path,
        project_root=Path(settings.BASE_DIR),
        expected_sha256=expected_sha256,
        on_wait=on_wait,
    )
    with closing(events):
        for event in events:
            on_event(event)
            if isinstance(event, SourceIdentified):
                source = event
                if existing := _version_of(name, sha256=event.sha256):
                    return existing
            elif isinstance(event, ConversionDone):
                done = event
    if source is None or done is None:
        raise ModelImportError("The converter ended without saying what it did.")
    return source, done


@transaction.atomic
def registered_model_describe(
    *, model: RegisteredModel, description: str, actor: Actor
) -> RegisteredModel:
    """Set the one field of a model that a person writes."""
    current = RegisteredModel.objects.select_for_update().get(pk=model.pk)
    before = current.description
    if before != description:
        current.description = description
        current.full_clean()
        current.save(update_fields=["description", "updated_at"])
        event_record(
            action="registered_model.updated",
            actor=actor,
            obj=current,
            changes={"description": [before, description]},
        )
    return current


@transaction.atomic
def _register(version: ModelVersion, *, actor: Actor) -> None:
    model = version.model
    if model.pk is None:
        model.save()
        event_record(action="registered_model.created", actor=actor, obj=model)
    version.model = model
    version.full_clean()
    version.save()
    if remote_storage() is not None:
        folder_keep(version.path)
    facts = ("source", "source_sha256", "architecture", "n_parameters", "dtype", "manifest_sha256")
    event_record(
        action="model_version.imported",
        actor=actor,
        obj=version,
        changes={name: getattr(version, name) for name in facts},
    )


def _next_version(name: str) -> int:
    """Return a number that no version has or had."""
    models = RegisteredModel.objects.filter(name=name)
    found = models.aggregate(last=Max("versions__version"), deleted=Max("last_deleted"))
    return max(found["last"] or 0, found["deleted"] or 0) + 1


def _version_of(name: str, *, sha256: str) -> ModelVersion | None:
    """The newest version of the same artifact whose files are still there."""
    versions = ModelVersion.objects.filter(model__name=name, source_sha256=sha256)
    for version in versions.select_related("model").order_by("-version"):
        if is_artifact_there(version.path):
            return version
    return None


def import_leftovers_remove(name: str) -> None:
    """Remove what a killed import of a model left half written, unless one is running."""
    directory = Path(settings.MODELS_DIR) / name
    if not directory.is_dir():
        return
    with contextlib.suppress(ModelImportRunning), import_lock(directory):
        for partial in directory.glob(".*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(directory / str(_next_version(name)), ignore_errors=True)


@contextmanager
def import_lock(directory: Path) -> Iterator[None]:
    """One import of a model at a time, over all processes; the system drops it with its holder.
    A directory that holds nothing else in the end is removed with it.

    Raises:
        ModelImportRunning: another one has it.
    """
    path = directory / ".import-lock"
    with _locked(path):
        try:
            yield
        finally:
            if [each.name for each in directory.iterdir()] == [path.name]:
                path.unlink()
                with contextlib.suppress(OSError):  # somebody else has begun in it
                    directory.rmdir()


def _locked(path: Path) -> IO[str]:
    """Return a file that is locked until it is closed. Raises ModelImportRunning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed the file that was opened.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()
    except (BlockingIOError, FileNotFoundError) as error:
        raise ModelImportRunning from error
    raise ModelImportRunning
