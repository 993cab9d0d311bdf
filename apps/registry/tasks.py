"""What workers are asked to do. A message carries nothing: the rows say what there is to do.

An import takes as long as its model is large. It runs in a thread beside Celery's own task, so that
the one worker of the embedded default goes on with everything else; most of it happens in a child
process anyway.
"""

import logging
import threading
from typing import Final

from celery import shared_task
from celery.signals import worker_shutdown, worker_shutting_down
from django.db import connections
from django.utils import timezone

from apps.registry import import_jobs, import_running
from apps.registry.storing import folders_sweep
from apps.registry.types import WAKE_IMPORTS

logger = logging.getLogger(__name__)

_STOP_S: Final = 8.0


class _Importer:
    """The one thread of this process that imports."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.is_stopping = threading.Event()

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wake(self) -> None:
        with self._lock:
            if not self.is_busy:
                self._thread = threading.Thread(target=self._work, name="imports", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Let the job go, for another worker. One that has no time for it loses it by its lease."""
        self.is_stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _work(self) -> None:
        try:
            import_running.imports_work(is_stopping=self.is_stopping.is_set)
        except Exception:
            logger.exception("Imports stop for now; the reaper begins again")
        finally:
            connections.close_all()


_importer: Final = _Importer()


@worker_shutting_down.connect
def _on_shutting_down(**kwargs: object) -> None:
    _importer.is_stopping.set()


@worker_shutdown.connect
def _on_shutdown(**kwargs: object) -> None:
    """Also of a worker that ends by a fault."""
    _importer.stop()


@shared_task(name=WAKE_IMPORTS, ignore_result=True)
def work() -> None:
    """Have the jobs that wait run, and return at once."""
    _importer.wake()


@shared_task(name="registry.reap", ignore_result=True)
def reap() -> None:
    """Have jobs taken up again whose worker is gone, or whose message was lost; tidy up."""
    import_jobs.import_uploads_reap()
    folders_sweep()
    if import_running.claimable(timezone.now()).exists():
        _importer.wake()
