"""The storage of models' files, and this node's cache of them."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from django.conf import settings

from apps.console.doctor.findings import Finding, failure, ok, warning
from apps.deployments.selectors import deployments_running
from apps.engines.services import node_cache
from apps.registry.selectors import remote_storage

_RAISE: Final = "raise NODE_CACHE_BYTES, or stop a deployment"
_MAKE_ROOM: Final = "make room there, or set NODE_CACHE_DIR to a larger disk"


def look_at_storage() -> Iterator[Finding]:
    storage = remote_storage()
    if storage is None:
        yield ok("artifacts", f"are used in place, in {settings.MODELS_DIR}")
        return
    began_s = time.monotonic()
    storage.ask()
    yield ok("artifacts", f"{storage} answers, in {(time.monotonic() - began_s) * 1000:.0f} ms")


def look_at_node_cache() -> Iterator[Finding]:
    """Say whether what should run has room in it together, beside all that has to go then."""
    if remote_storage() is None:
        return
    versions = {
        version
        for each in deployments_running()
        for version in (each.model_version, each.draft_version)
        if version is not None
    }
    needed = sum(version.size_bytes for version in versions)
    used = node_cache().used_bytes()
    bound, place = settings.NODE_CACHE_BYTES, Path(settings.NODE_CACHE_DIR)
    seen = f"{used / 1e9:.1f} of {bound / 1e9:.1f} GB in use at {place}"
    if needed > bound:
        missing = (
            f"what should run needs {needed:,} bytes, {needed - bound:,} more than it may have"
        )
        yield failure("node cache", f"{seen}; {missing}", _RAISE)
        return
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free + used
    if needed > free:
        missing = (
            f"what should run needs {needed:,} bytes, {needed - free:,} more than the disk has"
        )
        yield failure("node cache", f"{seen}; {missing}", _MAKE_ROOM)
    elif bound > free:
        more = f"the disk has room for {free / 1e9:.1f} GB of it"
        yield warning("node cache", f"{seen}; {more}", f"{_MAKE_ROOM}, or lower NODE_CACHE_BYTES")
    else:
        yield ok("node cache", seen)
