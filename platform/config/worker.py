"""Celery's processes as ``manage.py serve`` starts them: ``python -m config.worker worker``,
``… watcher`` and ``… beat``. All end in order on SIGTERM, and with their parent if asked."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Final

from config.loading import loading
from config.settings.components.jobs import LONG_QUEUE, WATCH_QUEUE

# Whoever waits for an answer goes first on the processor too.
_NICE: Final = 5
# One task at a time, in this process: the task itself answers many requests at once.
_SOLO: Final = (
    "worker",
    "--pool=solo",
    "--without-gossip",
    "--without-mingle",
    "--without-heartbeat",
)
_COMMANDS: Final = {
    # What is to be watched as well: it may be the only worker.
    "worker": (*_SOLO, f"--queues={LONG_QUEUE},{WATCH_QUEUE}"),
    "watcher": (*_SOLO, f"--queues={WATCH_QUEUE}", "--hostname=watcher@%h"),
    "beat": ("beat",),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="config.worker", description="Work in the background.")
    parser.add_argument("role", choices=sorted(_COMMANDS))
    parser.add_argument("--exit-with-parent", action="store_true", help="stop when stdin ends")
    options = parser.parse_args(arguments)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.development")

    os.nice(_NICE)

    with loading():
        import django

        django.setup()

        from config.celery import app

    if options.exit_with_parent:
        threading.Thread(target=_watch_stdin, name="stdin", daemon=True).start()
    app.start(list(_COMMANDS[options.role]))


def _watch_stdin() -> None:
    """Stop when the pipe from the parent ends: whoever held it is gone."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
