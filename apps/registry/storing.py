"""Folders of the artifact storage, from before their first file until after their last one. A
version's row is what makes its folder count; each other one has a ``LooseFolder``, and is swept."""

import contextlib
import logging
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

from django.core.files.storage import FileSystemStorage, storages
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from apps.core.exceptions import AppError
from apps.core.ids import new_id
from apps.registry.artifacts import STORAGE, artifact_upload, remote_storage
from apps.registry.exceptions import ImportLeaseLost
from apps.registry.models import LooseFolder
from apps.registry.types import ConversionDone, ImportEvent, ImportProgress

logger = logging.getLogger(__name__)

_WRITER_LIFE: Final = timedelta(hours=1)
_RENEW: Final = timedelta(minutes=1)
_TRY_AGAIN: Final = timedelta(minutes=5)
_AT_ONCE: Final = 20


def folder_upload(
    directory: Path,
    *,
    name: str,
    number: int,
    done: ConversionDone,
    on_event: Callable[[ImportEvent], None],
) -> str:
    """Bring a converted model to a new folder of the storage; return its path.

    Until ``folder_keep`` it is loose: whoever is killed before has left nothing for good. No two
    writers share a folder, so that one that was thought dead spoils nothing.
    """
    path = f"{name}/{new_id(str(number))}"
    written = timezone.now()
    LooseFolder.objects.create(path=path, left_alone_until=written + _WRITER_LIFE)

    def on_bytes(sent: int, total: int) -> None:
        nonlocal written
        on_event(ImportProgress(stage="upload", done=sent, total=total))
        if timezone.now() - written >= _RENEW:
            written = timezone.now()
            _still_writing(path)

    try:
        artifact_upload(
            directory,
            path=path,
            manifest=done.manifest,
            manifest_sha256=done.manifest_sha256,
            on_bytes=on_bytes,
        )
    except BaseException:
        folder_drop(path)
        raise
    return path


def _still_writing(path: str) -> None:
    """Raises ImportLeaseLost: the folder is being swept."""
    rows = LooseFolder.objects.filter(path=path, is_going=False)
    if not rows.update(left_alone_until=timezone.now() + _WRITER_LIFE):
        raise ImportLeaseLost


def folder_keep(path: str) -> None:
    """Make a folder a version's, in the transaction of its row. Raises ImportLeaseLost: it is being
    swept."""
    if not LooseFolder.objects.filter(path=path, is_going=False).delete()[0]:
        raise ImportLeaseLost


def folder_loosen(path: str) -> None:
    """Say that a folder is to go, in the transaction that takes its version away."""
    LooseFolder.objects.create(path=path, is_going=True, left_alone_until=timezone.now())
    transaction.on_commit(lambda: folder_drop(path))


def folder_drop(path: str) -> None:
    """Remove a loose folder now, or leave it to the sweeper where that cannot be. Never raises what
    the storage says: nobody who waits could do anything about it."""
    if _taken(LooseFolder.objects.filter(path=path)):
        _removed(path)


def folders_sweep() -> int:
    """Remove what writers that are gone have left, and what could not be removed before; return how
    many folders were taken."""
    over = LooseFolder.objects.filter(left_alone_until__lt=timezone.now())
    n_taken = 0
    for path in list(over.order_by("id").values_list("path", flat=True)[:_AT_ONCE]):
        # Asked again of each: its writer may have renewed it meanwhile.
        if _taken(over.filter(path=path)):
            n_taken += 1
            if not _removed(path):  # nor will the others be
                over.update(left_alone_until=timezone.now() + _TRY_AGAIN)
                break
    return n_taken


def _taken(rows: "QuerySet[LooseFolder]") -> bool:
    """Say that a folder goes: its writer can keep it no more."""
    later = timezone.now() + _TRY_AGAIN
    return bool(rows.update(is_going=True, left_alone_until=later))


def _removed(path: str) -> bool:
    try:
        _remove(path)
    except (AppError, OSError) as error:
        logger.warning("The files of %s are removed later: %s", path, error)
        return False
    LooseFolder.objects.filter(path=path).delete()
    return True


def _remove(path: str) -> None:
    storage = remote_storage()
    if storage is not None:
        storage.remove(path)
        return
    local = storages[STORAGE]
    assert isinstance(local, FileSystemStorage)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(local.path(path))
