"""Where an installation keeps what a backup is of."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.db import connection

SECRET_KEY: Final = "secret_key"  # noqa: S105 - the name of its file
BOOTSTRAP: Final = "bootstrap.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """database: an entry of Django's DATABASES. secret_key: what signs sessions, wherever it came
    from."""

    var_dir: Path
    models_dir: Path
    files_dir: Path
    media_dir: Path
    secret_key: str
    database: Mapping[str, Any]

    @property
    def trees(self) -> dict[str, Path]:
        """The directories that are in a backup file by file."""
        return {"models": self.models_dir, "files": self.files_dir, "media": self.media_dir}


def installation_here() -> Installation:
    """Return the one that this process's settings speak of."""
    var_dir = Path(settings.VAR_DIR)
    return Installation(
        var_dir=var_dir,
        models_dir=Path(settings.MODELS_DIR),
        files_dir=Path(settings.FILES_DIR),
        media_dir=Path(settings.MEDIA_ROOT or var_dir / "media"),
        secret_key=settings.SECRET_KEY,
        database=connection.settings_dict,
    )


def tree_files(part: str, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name below ``root``, path) of what a backup holds of a tree: plain files, and of
    nothing hidden, which is where locks and half-written folders are. Drafts of uploads are not
    files yet."""
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            continue
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if not (part == "files" and folder == root):
                    folders.append(path)
            elif entry.is_file(follow_symlinks=False):
                yield str(path.relative_to(root)), path
