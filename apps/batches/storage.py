"""Where the bytes of files lie: under FILES_DIR, by id. Drafts become files by a rename, so that a
file is whole or not there."""

import contextlib
import os
import time
from pathlib import Path
from typing import Final

from django.conf import settings

from apps.core.ids import new_id

_DRAFT_LIFE_S: Final = 3600.0


def file_path(file_id: str) -> Path:
    return Path(settings.FILES_DIR) / file_id


def draft_path() -> Path:
    """Return a new name for a file that is being written."""
    drafts = Path(settings.FILES_DIR) / "drafts"
    drafts.mkdir(mode=0o700, parents=True, exist_ok=True)
    return drafts / new_id("draft")


def draft_keep(draft: Path, *, file_id: str) -> None:
    """Put a draft, whole and on the disk, in its place; in one step."""
    with draft.open("rb") as handle:
        os.fsync(handle.fileno())
    draft.replace(file_path(file_id))


def file_remove(file_id: str) -> None:
    file_path(file_id).unlink(missing_ok=True)


def drafts_purge() -> None:
    """Remove drafts whose writer is gone."""
    oldest_s = time.time() - _DRAFT_LIFE_S
    for draft in (Path(settings.FILES_DIR) / "drafts").glob("draft-*"):
        with contextlib.suppress(FileNotFoundError):
            if draft.stat().st_mtime < oldest_s:
                draft.unlink()
