"""What an import that was killed left half written."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

from apps.core.pruning import PruneOrder, Pruning, pruning_register, things_prune
from apps.registry.exceptions import ModelImportRunning
from apps.registry.services import import_lock


def register() -> None:
    pruning_register(
        Pruning(name="imports", says="half-written folders of imports", run=_leftovers_prune)
    )


def _leftovers_prune(order: PruneOrder) -> int:
    return things_prune(_leftovers(), order, remove=_remove)


def _leftovers() -> Iterator[Path]:
    """Yield folders that nobody writes to: whoever does holds the model's lock, which is held here
    until the next one is asked for."""
    for directory in sorted(Path(settings.MODELS_DIR).glob("*/")):
        partial = sorted(directory.glob(".*.partial/"))
        if not partial:
            continue
        try:
            with import_lock(directory):
                yield from partial
        except ModelImportRunning:
            continue


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)
