"""``python -m engine_service.convert --source PATH --output DIR``: JSON lines on standard output.

Lines: ``source`` once, ``progress`` as it goes, and last ``done``, or ``error`` with exit code 1.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from engine_service.convert.errors import ConversionError
from engine_service.convert.pipeline import Progress, convert
from engine_service.errors import ModelError
from engine_service.models.manifest import MANIFEST_NAME, ManifestSource, hash_file

_PROGRESS_INTERVAL_S = 0.1


def main() -> int:
    """Convert and report. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine_service.convert", description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sha256", help="what the source must have")
    parser.add_argument("--exit-with-parent", action="store_true", help="stop when stdin ends")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    if arguments.exit_with_parent:
        threading.Thread(target=_watch_stdin, name="stdin", daemon=True).start()
    try:
        manifest = convert(
            arguments.source,
            arguments.output,
            report=_Reporter(),
            expected_sha256=arguments.sha256,
        )
    except (ModelError, OSError, MemoryError) as error:
        field = error.field if isinstance(error, ConversionError) else None
        _print_event("error", message=str(error) or type(error).__name__, field=field)
        return 1
    _print_event(
        "done",
        manifest=msgspec.to_builtins(manifest),
        manifest_sha256=hash_file(arguments.output / MANIFEST_NAME),
        size_bytes=sum(path.stat().st_size for path in arguments.output.iterdir()),
    )
    return 0


def _leave(*_: object) -> None:
    """SystemExit lets the half-written directory be removed on the way out; once is enough."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def _watch_stdin() -> None:
    """Clean up and go when the pipe from the parent ends: whoever held it is gone."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class _Reporter:
    """Prints progress, at most some lines a second and always a stage's last."""

    def __init__(self) -> None:
        self._printed_at = 0.0

    def __call__(self, event: ManifestSource | Progress) -> None:
        if isinstance(event, ManifestSource):
            _print_event("source", name=event.name, sha256=event.sha256)
            return
        now = time.monotonic()
        if event.done == event.total or now - self._printed_at >= _PROGRESS_INTERVAL_S:
            self._printed_at = now
            _print_event("progress", stage=event.stage, done=event.done, total=event.total)


def _print_event(event: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
